// An allocator for libtorch's tensors on the CPU that keeps large buffers for the next tensor.
//
// A training step frees and asks for the same few sizes again and again. The C library either returns such memory to the system, and
// then the system must clear each page anew, or keeps it in one heap, where small tensors settle between large ones and leave holes
// that the next large one does not fit. Here each large buffer is a mapping of its own. One that is free serves the next request of
// about its size; where there is none and enough lies free in other sizes, one of those is stretched or cut by the system's page
// tables, without touching its pages. So the memory of the process is little more than what was in use at one time, and holes are
// impossible.

#include <c10/core/CPUAllocator.h>

#include <cstdint>

#if defined(__linux__)

#include <malloc.h>
#include <sys/mman.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <unordered_map>

namespace {

// Smaller tensors are left to libtorch's own allocator.
constexpr size_t kLarge = 256 << 10;
constexpr size_t kPage = 4096;

// Free buffers of other sizes up to which a new one is mapped rather than one of them stretched or cut, which moves page tables and has
// pages cleared that were cut off before.
constexpr size_t kSpare = 32 << 20;

// Sizes rise in steps of an eighth or less, so that batches of nearly one length use the same buffers. What is rounded up is address
// space: pages that no tensor touches take no memory.
size_t rounded(size_t bytes) {
  const size_t highest_bit = size_t{1} << (63 - __builtin_clzll(bytes));
  const size_t step = std::max(highest_bit / 8, kPage);
  return (bytes + step - 1) / step * step;
}

struct Buffers final : c10::Allocator {
  explicit Buffers(c10::Allocator* others) : others(others) {}

  c10::DataPtr allocate(size_t bytes) override {
    if (bytes < kLarge || bytes > SIZE_MAX / 2) return others->allocate(bytes);
    void* data = take(rounded(bytes));
    // No memory: libtorch's own allocator says so in its own words.
    if (data == nullptr) return others->allocate(bytes);
    return {data, data, &give_back, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }

  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }

  // A buffer of `size` bytes, or null.
  void* take(size_t size) {
    std::lock_guard<std::mutex> lock(mutex);
    // Half more than is asked for: the batches of a run differ in length by about as much, and use the same buffers then.
    const size_t largest = size + size / 2;
    auto place = free.lower_bound(size);
    if (place == free.end() || place->first > largest) {
      // None of about this size: rather a smaller one stretched than a much larger one cut.
      if (free_bytes < kSpare) place = free.end();
      else if (place != free.begin()) --place;
    }
    void* data = nullptr;
    if (place != free.end()) {
      auto [found, address] = *place;
      free.erase(place);
      free_bytes -= found;
      data = address;
      if (found < size || found > largest) {
        data = mremap(address, found, size, MREMAP_MAYMOVE);
        if (data == MAP_FAILED) {
          munmap(address, found);
          data = nullptr;
        }
      } else {
        size = found;
      }
    }
    if (data == nullptr) {
      data = map(size);
      if (data == nullptr) {
        release_locked();
        data = map(size);
      }
    }
    if (data != nullptr) used.emplace(data, size);
    return data;
  }

  // Whether the address is that of a buffer; then it is free again.
  bool put(void* data) {
    std::lock_guard<std::mutex> lock(mutex);
    const auto place = used.find(data);
    if (place == used.end()) return false;
    free.emplace(place->second, data);
    free_bytes += place->second;
    used.erase(place);
    return true;
  }

  void release() {
    std::lock_guard<std::mutex> lock(mutex);
    release_locked();
  }

  size_t kept() {
    std::lock_guard<std::mutex> lock(mutex);
    return free_bytes;
  }

  static void give_back(void* data);

  c10::Allocator* const others;

 private:
  static void* map(size_t size) {
    void* data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return data == MAP_FAILED ? nullptr : data;
  }

  void release_locked() {
    for (const auto& [size, data] : free) munmap(data, size);
    free.clear();
    free_bytes = 0;
  }

  std::mutex mutex;
  std::unordered_map<void*, size_t> used;
  std::multimap<size_t, void*> free;
  size_t free_bytes = 0;
};

// Never destroyed: tensors may outlive every static object.
Buffers* buffers() {
  static auto* const instance = new Buffers(c10::GetDefaultCPUAllocator());
  return instance;
}

void Buffers::give_back(void* data) {
  if (data != nullptr && !buffers()->put(data)) buffers()->others->raw_deleter()(data);
}

}  // namespace

extern "C" {

// Whether large buffers are kept from now on. An allocator that somebody else has put in place stays.
bool ferrotune_reuse_buffers() {
  try {
    if (c10::GetCPUAllocator() == buffers()) return true;
    if (c10::GetCPUAllocator() != c10::GetDefaultCPUAllocator()) return false;
    c10::SetCPUAllocator(buffers(), /*priority=*/1);
#if defined(M_TRIM_THRESHOLD)
    // What is small comes and goes as well: a heap that shrinks after each of them has its pages cleared as often.
    mallopt(M_TRIM_THRESHOLD, 32 << 20);
#endif
    return c10::GetCPUAllocator() == buffers();
  } catch (...) {
    return false;
  }
}
void ferrotune_release_buffers() { buffers()->release(); }
size_t ferrotune_kept_buffer_bytes() { return buffers()->kept(); }

}  // extern "C"

#else

extern "C" {
bool ferrotune_reuse_buffers() { return false; }
void ferrotune_release_buffers() {}
size_t ferrotune_kept_buffer_bytes() { return 0; }
}

#endif
