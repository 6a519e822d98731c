//! Memory for copies of factors, kept from product to product.

use super::COPY_BYTES;
use std::sync::{Mutex, PoisonError};

/// Those that no product uses.
static FREE: Mutex<Vec<Vec<u16>>> = Mutex::new(Vec::new());

/// [`COPY_BYTES`] that begin at a multiple of 64, so that a row of a tile is one line of a cache.
///
/// A program that multiplies in one thread at a time writes to the same two, whatever the sizes of its products: memory that has its pages,
/// and is in a cache as often as not. Pages that no copy reaches take no memory.
pub(super) struct Room {
    numbers: Vec<u16>,
    start: *mut u16,
}

impl Room {
    const LINE: usize = 64;
    /// Those that are kept at the most: more are of products at one time, which is rare.
    const KEPT: usize = 4;

    pub(super) fn take() -> Self {
        let free = FREE.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut numbers = free.unwrap_or_else(|| vec![0; (COPY_BYTES + Self::LINE) / 2]);
        let start = numbers.as_mut_ptr();
        Self { start: start.wrapping_add(start.align_offset(Self::LINE)), numbers }
    }

    /// The first of `COPY_BYTES / 2` numbers, which may be written as long as this lives.
    pub(super) fn start(&self) -> *mut u16 {
        self.start
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < Self::KEPT {
            free.push(std::mem::take(&mut self.numbers));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rooms_begin_at_a_line_and_do_not_overlap() {
        let rooms = [Room::take(), Room::take(), Room::take()];
        let mut starts = rooms.each_ref().map(|room| room.start() as usize);
        starts.sort_unstable();
        assert!(starts.iter().all(|start| start.is_multiple_of(Room::LINE)));
        assert!(starts.windows(2).all(|pair| pair[1] - pair[0] >= COPY_BYTES));
        let kept = rooms.each_ref().map(|room| room.numbers.len());
        assert!(kept.iter().all(|numbers| 2 * numbers >= COPY_BYTES + Room::LINE));
    }
}
