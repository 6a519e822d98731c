//! Matrix products in f32, made for what a layer with an adapter does: a sum of products with one result, written once.
//!
//! `y = x W^T + p B^T` and `dx = g W + q A` are each one pass over the result: the update's few columns go through the registers that
//! hold the sums of the base. A general product packs both of its factors; here the left one is read where it lies, and of the right
//! one the thread copies 48 columns at a time into its second cache, where all rows of the left one meet them. Where the left factor
//! has few rows, as in decoding, even that copy would cost more than the product: sums run along the depth instead, or, where rows of
//! the right one lie dense, it is read in place.
//!
//! On Intel's processors libtorch's own products of many rows (MKL's) are faster than these, and are left to it, except where one task
//! computes several of the same rows: see [`narrow`]. On others MKL does without AVX-512. Where the processor multiplies tiles of bf16 and
//! the right factor has few bits, that is faster still: see [`in_pieces`].
//!
//! Every element is summed in one order, whatever the number of threads or of rows beside it in the panel.
//!
//! # References
//! Goto and van de Geijn 2008, "Anatomy of high-performance matrix multiplication".

use crate::error::Result;
use std::{
    ops::Range,
    ptr::NonNull,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};
use tch::{Device, Kind, Tensor};

mod blocks;
mod compact;
mod factor;
mod in_pieces;
mod level;
mod matrix;
mod narrow;
mod number;
pub(super) mod panel;
pub(super) mod right_rows;
pub(super) mod tile;
pub(super) mod vector;

pub(crate) use compact::Compact;
pub(crate) use factor::Factor;
pub(super) use level::{Few, Level, level};
pub(crate) use matrix::Matrix;
pub(crate) use narrow::narrow_products;

/// Rows of a left factor up to which nothing is copied.
pub(crate) const FEW_ROWS: usize = 32;
/// Sums and products worth a thread of its own: some ten microseconds.
const WORK_PER_THREAD: usize = 1 << 20;

/// `scale * left right`, added to the columns of the result from `first_column` on.
#[derive(Clone, Copy)]
pub(crate) struct Term<'a> {
    /// `[rows, depth]`
    pub(crate) left: Matrix<'a>,
    /// `[depth, columns of the term]`
    pub(crate) right: Factor<'a>,
    pub(crate) first_column: usize,
    pub(crate) scale: f32,
}

impl<'a> Term<'a> {
    /// `left right`, from the first column on.
    pub(crate) fn new(left: Matrix<'a>, right: impl Into<Factor<'a>>) -> Self {
        Self { left, right: right.into(), first_column: 0, scale: 1.0 }
    }

    /// Whether it is a product, and one for a result of that shape.
    fn fits(&self, rows: usize, columns: usize) -> bool {
        let [depth, width] = self.right.shape();
        // Registers of blocks begin where halves of them do: columns of the target are those of the factor.
        let begins = self.first_column == 0 || matches!(self.right, Factor::Singles(_) | Factor::Halves(_));
        let is_product = self.left.rows == rows && self.left.columns == depth;
        begins && is_product && self.first_column + width <= columns
    }

    /// Those of some columns of the result that it is added to; empty if there are none.
    fn columns_among(&self, columns: Range<usize>) -> Range<usize> {
        let start = columns.start.max(self.first_column);
        start..columns.end.min(self.first_column + self.right.shape()[1]).max(start)
    }

    /// Whether the depth lies dense in both factors.
    fn is_dense_along_depth(&self) -> bool {
        self.left.column_stride == 1 && self.right.has_dense_columns()
    }
}

/// `left right`, a new tensor; `None` where this machine or these tensors want libtorch's product.
pub(crate) fn product(left: &Tensor, right: &Tensor) -> Result<Option<Tensor>> {
    let (Some(left), Some(right)) = (Matrix::of(left), Matrix::of(right)) else { return Ok(None) };
    sum_of_products(&[Term::new(left, right)])
}

/// What the processor says of itself.
fn cpuid(leaf: u32) -> std::arch::x86_64::CpuidResult {
    // Older compilers call this unsafe, newer ones do not.
    #[allow(unused_unsafe)]
    // SAFETY: every x86-64 processor has the instruction.
    unsafe {
        std::arch::x86_64::__cpuid_count(leaf, 0)
    }
}

/// Whether libtorch multiplies with MKL, on a processor of MKL's maker.
fn mkl_is_at_home() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let leaf = cpuid(0);
        let maker = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes);
        maker.as_flattened() == b"GenuineIntel" && tch::utils::has_mkl()
    })
}

/// Whether products of many rows are best with numbers of a right factor as they are on this machine, rather than with all bits of f32.
pub(crate) fn reads_as_it_is(right: &Factor) -> bool {
    reads_bf16() && (!mkl_is_at_home() || in_pieces::takes_numbers_of(right))
}

/// Whether that is so of numbers of bf16.
pub(crate) fn reads_bf16() -> bool {
    level().is_some() && (!mkl_is_at_home() || in_pieces::is_available())
}

/// The sum of the terms, a new tensor; the first term covers all of its columns.
///
/// `None` where the machine has no instructions that these loops are written for or libtorch is faster, or where the shapes do not fit
/// each other.
pub(crate) fn sum_of_products(terms: &[Term]) -> Result<Option<Tensor>> {
    let Some(level) = level() else { return Ok(None) };
    let Some(first) = terms.first() else { return Ok(None) };
    let (rows, [_, columns]) = (first.left.rows, first.right.shape());
    let in_pieces = in_pieces::is_available() && in_pieces::suits(rows, &first.right);
    if rows > FEW_ROWS && !in_pieces && mkl_is_at_home() {
        return Ok(None);
    }
    if first.first_column != 0 || !terms.iter().all(|term| term.fits(rows, columns)) {
        return Ok(None);
    }
    let Some((result, target)) = Target::new(rows, columns)? else { return Ok(None) };
    // SAFETY: the target is new, and no other handle knows its memory; the terms fit it, and the first one covers it.
    unsafe {
        match in_pieces {
            true => in_pieces::fill(target, terms),
            false => level.fill(target, terms),
        }
    }
    Ok(Some(result))
}

/// `scale * left factor` for each factor with its scale, side by side in a new tensor.
///
/// `None` where the machine has no instructions that these loops are written for or libtorch is faster, or where the shapes do not fit.
pub(crate) fn products_beside<'a>(left: Matrix<'a>, factors: &[(Matrix<'a>, f32)]) -> Result<Option<Tensor>> {
    let Some(level) = level() else { return Ok(None) };
    if left.rows > FEW_ROWS && mkl_is_at_home() {
        return Ok(None);
    }
    let Some(terms) = beside(left, factors) else { return Ok(None) };
    let columns = factors.iter().map(|(right, _)| right.columns).sum();
    let Some((result, target)) = Target::new(left.rows, columns)? else { return Ok(None) };
    // SAFETY: the target is new, and no other handle knows its memory; the terms cover it side by side.
    unsafe { level.fill_beside(target, &terms) };
    Ok(Some(result))
}

/// Terms for columns that follow each other; `None` if one is no product.
fn beside<'a>(left: Matrix<'a>, factors: &[(Matrix<'a>, f32)]) -> Option<Vec<Term<'a>>> {
    let mut first_column = 0;
    let term = |&(right, scale): &(Matrix<'a>, f32)| {
        let term = Term { first_column, scale, ..Term::new(left, right) };
        first_column += right.columns;
        (left.columns == right.rows).then_some(term)
    };
    factors.iter().map(term).collect()
}

/// Adds the terms to a product of libtorch's, which nobody else has seen yet; `false` where [`sum_of_products`] would not do it.
pub(crate) fn add_products(result: &mut Tensor, terms: &[Term]) -> bool {
    let (Some(level), Some(matrix)) = (level(), Matrix::of(result)) else { return false };
    let Matrix { start, rows, columns, .. } = matrix;
    let is_dense = matrix.column_stride == 1 && matrix.row_stride == columns;
    if !is_dense || !terms.iter().all(|term| term.fits(rows, columns)) {
        return false;
    }
    // SAFETY: dense, so `target` is all of the result's memory, which nobody else reads or writes meanwhile; the terms fit it.
    unsafe { level.fill(Target { start, rows, columns, holds_sums: true }, terms) };
    true
}

/// The memory of a result.
#[derive(Clone, Copy)]
struct Target {
    start: NonNull<f32>,
    rows: usize,
    columns: usize,
    /// Whether what it holds is to be added to.
    holds_sums: bool,
}

// SAFETY: tasks write disjoint parts of it, see `Level::fill` and `narrow`.
unsafe impl Sync for Target {}

impl Target {
    /// All of a new tensor, whose numbers are to be written.
    fn new(rows: usize, columns: usize) -> Result<Option<(Tensor, Self)>> {
        let tensor = Tensor::f_empty([rows as i64, columns as i64], (Kind::Float, Device::Cpu))?;
        let start = NonNull::new(tensor.data_ptr().cast::<f32>());
        Ok(start.map(|start| (tensor, Self { start, rows, columns, holds_sums: false })))
    }
}

/// A block of rows of a result, `left panel` or added to it.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) depth: usize,
    pub(super) left: *const f32,
    pub(super) left_row_stride: usize,
    pub(super) left_depth_stride: usize,
    /// Dense rows; registers are read whole, beyond `columns` if these fill none.
    pub(super) panel: *const f32,
    pub(super) panel_stride: usize,
    pub(super) target: *mut f32,
    pub(super) target_row_stride: usize,
    /// Whether to add to what the target holds, rather than to overwrite it.
    pub(super) add: bool,
}

/// Runs `body` once for each of `tasks`: see [`in_shares`].
pub(super) fn in_parallel(tasks: usize, work: usize, body: impl Fn(usize) + Sync) {
    in_shares([tasks], work, |_, task| body(task));
}

/// Runs `body` once for each task of each kind, one kind after the other, with the index of the kind and that of the task.
///
/// Of each kind a thread begins with a share of its own, and then takes what others have left of theirs. So calls one after the other find
/// what a share reads and writes in the cache of the same core, unless a thread was held up.
pub(super) fn in_shares<const KINDS: usize>(
    tasks: [usize; KINDS],
    work: usize,
    body: impl Fn(usize, usize) + Sync,
) {
    let threads = usize::try_from(tch::get_num_threads()).unwrap_or(1);
    let threads = threads.min(tasks.iter().sum()).min(work / WORK_PER_THREAD + 1);
    let start_of = |share: usize, count: usize| count * share / threads;
    let next =
        tasks.map(|count| Vec::from_iter((0..threads).map(|share| AtomicUsize::new(start_of(share, count)))));
    ferrotune_autograd::parallel_for(threads, 1, |own| {
        for (kind, (next, count)) in next.iter().zip(tasks).enumerate() {
            for share in (own.start..threads).chain(0..own.start) {
                let end = start_of(share + 1, count);
                // Looked at first: a share that is done costs the others no write to its counter.
                while next[share].load(Ordering::Relaxed) < end {
                    let task = next[share].fetch_add(1, Ordering::Relaxed);
                    if task < end {
                        body(kind, task);
                    }
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{assert_close, noise};

    /// A tensor of the terms' shape, without numbers until `fill` writes them.
    fn filled(terms: &[Term], fill: impl Fn(Target)) -> Tensor {
        let (rows, [_, columns]) = (terms[0].left.rows, terms[0].right.shape());
        filled_as([rows as i64, columns as i64], fill)
    }

    /// A tensor without numbers until `fill` writes them.
    fn filled_as(size: [i64; 2], fill: impl Fn(Target)) -> Tensor {
        let result = Tensor::full(size, f64::NAN, (Kind::Float, Device::Cpu));
        let start = NonNull::new(result.data_ptr().cast()).unwrap();
        let [rows, columns] = size.map(|count| count as usize);
        fill(Target { start, rows, columns, holds_sums: false });
        result
    }

    /// The sum by the unit for tiles, which is available.
    pub(super) fn in_tiles(terms: &[Term]) -> Tensor {
        // SAFETY: `filled` makes a new tensor of that shape.
        filled(terms, |target| unsafe { in_pieces::fill(target, terms) })
    }

    /// The sum at every level that this machine has.
    fn at_all_levels(terms: &[Term]) -> Vec<Tensor> {
        // SAFETY: as above.
        let at = |level: Level| filled(terms, |target| unsafe { level.fill(target, terms) });
        let tiles = in_pieces::is_available().then(|| in_tiles(terms));
        Level::available().map(at).chain(tiles).collect()
    }

    fn in_double(x: &Tensor) -> Tensor {
        x.to_kind(Kind::Double)
    }

    #[test]
    fn products_of_all_shapes_and_orders_of_memory() {
        for [rows, depth, columns] in [
            [1, 1, 1],
            [5, 3, 2],
            [8, 16, 48],
            [33, 7, 47],
            [200, 65, 100],
            [311, 576, 49],
            [32, 577, 97],
            [7, 1030, 50],
            [40, 2049, 17],
            [97, 1, 16],
        ] {
            let (left, right) = (noise(1, &[rows, depth]), noise(2, &[depth, columns]));
            let expected = in_double(&left).matmul(&in_double(&right));
            let turned = |x: &Tensor| x.tr().contiguous().tr();
            // Columns of wider tensors, as in a stack of layers.
            let wider = |x: &Tensor| Tensor::cat(&[x, x, x], 1).narrow(1, x.size()[1], x.size()[1]);
            let forms: [&dyn Fn(&Tensor) -> Tensor; 3] = [&Tensor::shallow_clone, &turned, &wider];
            for left_form in forms {
                for right_form in forms {
                    let (left, right) = (left_form(&left), right_form(&right));
                    let term = Term::new(Matrix::of(&left).unwrap(), Matrix::of(&right).unwrap());
                    for found in at_all_levels(&[term]) {
                        assert_close(&in_double(&found), &expected, 1e-6);
                    }
                }
            }
        }
    }

    /// Numbers as files of few bits hold them, and the bytes of their compact form.
    pub(super) fn of_few_bits(rows: i64, depth: i64) -> [(Tensor, usize); 3] {
        let kind = (Kind::Float, Device::Cpu);
        let blocks = rows * depth / 32;
        let per_block = |x: Tensor| x.to_kind(Kind::Half).to_kind(Kind::Float);
        let (step, base) =
            (per_block(noise(5, &[blocks, 1]) * 0.01 + 0.02), per_block(noise(6, &[blocks, 1])));
        let codes = |low, high| Tensor::randint_low(low, high, [blocks, 32], kind);
        let count = usize::try_from(blocks).unwrap();
        [
            (&step * codes(0, 16) + &base, count * 24),
            (&step * codes(-127, 128), count * 36),
            (noise(7, &[blocks, 32]).to_kind(Kind::BFloat16).to_kind(Kind::Float), count * 64),
        ]
        .map(|(numbers, bytes)| (numbers.reshape([rows, depth]), bytes))
    }

    #[test]
    fn a_compact_form_is_found_and_changes_no_bit() {
        for (weight, bytes) in of_few_bits(101, 96) {
            let compact = Compact::of(&weight).unwrap();
            assert_eq!(compact.size(), bytes);
            let weight = Matrix::of(&weight).unwrap();
            // A thread that copies panels, and one that copies none.
            for rows in [1, 2, 7, 8, 13, 32, 33, 70] {
                let (x, grad) = (noise(8, &[rows, 96]), noise(9, &[rows, 101]));
                let (x, grad) = (Matrix::of(&x).unwrap(), Matrix::of(&grad).unwrap());
                let of = |left, right| at_all_levels(&[Term::new(left, right)]);
                assert_eq!(of(x, compact.factor().turned()), of(x, Factor::from(weight.turned())), "{rows}");
                assert_eq!(of(grad, compact.factor()), of(grad, Factor::from(weight)), "{rows}");
            }
        }
    }

    #[test]
    fn one_number_of_more_bits_leaves_no_compact_form() {
        for (weight, _) in of_few_bits(70, 64) {
            let of = Compact::of;
            let mut last = weight.narrow(0, 69, 1).narrow(1, 63, 1);
            let _ = last.g_add_scalar_(0.1234567);
            assert!(of(&weight).is_none());
            assert!(of(&weight.narrow(1, 0, 33)).is_none());
            assert!(of(&weight.tr()).is_none());
        }
    }

    #[test]
    fn terms_are_added_to_their_own_columns_with_their_own_factor() {
        for rows in [3, 40, 70] {
            let (x, w) = (noise(1, &[rows, 40]), noise(2, &[130, 40]));
            // Borders that are those of no register and no panel; the last two share columns.
            let places = [(0, 37), (37, 60), (90, 40)];
            let updates: Vec<[Tensor; 2]> = places
                .iter()
                .map(|&(first, width)| [noise(3 + first as u64, &[rows, 5]), noise(9, &[width, 5])])
                .collect();
            let expected = in_double(&x).matmul(&in_double(&w).tr());
            let (left, right) = (Matrix::of(&x).unwrap(), Matrix::of(&w).unwrap().turned());
            let mut terms = vec![Term::new(left, right)];
            for (&(first, width), [p, b]) in places.iter().zip(&updates) {
                let mut columns = expected.narrow(1, first, width);
                let _ = columns.g_add_(&(in_double(p).matmul(&in_double(b).tr()) * 0.5));
                let (left, right) = (Matrix::of(p).unwrap(), Matrix::of(b).unwrap().turned());
                let term = Term { first_column: first as usize, scale: 0.5, ..Term::new(left, right) };
                terms.push(term);
            }
            // Columns that lie dense are read in place where they are those of a panel, and copied where they are not.
            let dense = [(48, 48), (53, 64)]
                .map(|(first, width)| (first, noise(20 + first as u64, &[rows, 5]), noise(30, &[5, width])));
            for (first, p, b) in &dense {
                let mut columns = expected.narrow(1, *first, b.size()[1]);
                let _ = columns.g_add_(&in_double(p).matmul(&in_double(b)));
                let (left, right) = (Matrix::of(p).unwrap(), Matrix::of(b).unwrap());
                terms.push(Term { first_column: *first as usize, ..Term::new(left, right) });
            }
            for found in at_all_levels(&terms) {
                assert_close(&in_double(&found), &expected, 1e-6);
            }
        }
    }

    #[test]
    fn products_side_by_side_have_their_own_factors() {
        // One panel and several, columns that fill registers and others, few rows and parts of many, the depth dense or not.
        for (rows, widths) in [(7, [3, 50, 16]), (33, [16, 16, 16]), (500, [8, 21, 40]), (401, [16, 1, 3])] {
            let x = noise(1, &[rows, 40]);
            let factors = widths.map(|width| noise(2 + width as u64, &[width, 40]));
            let scales = [0.5, 1.0, 0.75];
            let scaled = factors.iter().zip(scales).map(|(factor, scale)| in_double(factor) * scale);
            let expected = in_double(&x).matmul(&Tensor::cat(&scaled.collect::<Vec<_>>(), 0).tr());
            for x in [&x, &x.tr().contiguous().tr()] {
                let turned = |factor| Matrix::of(factor).unwrap().turned();
                let factors =
                    Vec::from_iter(factors.iter().map(turned).zip(scales.map(|scale| scale as f32)));
                let terms = beside(Matrix::of(x).unwrap(), &factors).unwrap();
                for level in Level::available() {
                    let size = [rows, widths.iter().sum()];
                    // SAFETY: `filled_as` makes a new tensor of that shape, which the terms cover.
                    let found = filled_as(size, |target| unsafe { level.fill_beside(target, &terms) });
                    assert_close(&in_double(&found), &expected, 1e-6);
                }
            }
        }
        // Both few and many rows come to these loops where libtorch is not faster.
        for rows in [7, 500] {
            let (x, factor) = (noise(1, &[rows, 40]), noise(2, &[16, 40]));
            let found =
                products_beside(Matrix::of(&x).unwrap(), &[(Matrix::of(&factor).unwrap().turned(), 1.0)]);
            let is_ours = level().is_some() && (rows as usize <= FEW_ROWS || !mkl_is_at_home());
            assert_eq!(found.unwrap().is_some(), is_ours);
        }
        let (x, other) = (noise(1, &[7, 41]), noise(2, &[3, 40]));
        assert!(beside(Matrix::of(&x).unwrap(), &[(Matrix::of(&other).unwrap().turned(), 1.0)]).is_none());
    }

    #[test]
    fn no_number_of_threads_and_no_neighbouring_row_changes_a_bit() {
        let x = noise(1, &[500, 300]);
        // The second is read in place by few rows.
        for w in [noise(2, &[200, 300]).tr(), noise(2, &[300, 192])] {
            let of = |threads, x: &Tensor| {
                tch::set_num_threads(threads);
                let term = Term::new(Matrix::of(x).unwrap(), Matrix::of(&w).unwrap());
                Tensor::stack(&at_all_levels(&[term]), 1)
            };
            let whole = of(1, &x);
            for threads in [3, 16] {
                assert_eq!(of(threads, &x), whole);
            }
            for rows in [77, 40] {
                assert_eq!(of(3, &x.narrow(0, 101, rows)), whole.narrow(0, 101, rows));
            }
        }
    }

    #[test]
    fn each_task_of_each_kind_runs_once() {
        for threads in [1, 2, 5] {
            tch::set_num_threads(threads);
            for tasks in [[0, 0], [0, 3], [7, 0], [4, 9], [100, 1]] {
                let runs = tasks.map(|count| Vec::from_iter((0..count).map(|_| AtomicUsize::new(0))));
                in_shares(tasks, 100 * WORK_PER_THREAD, |kind, task| {
                    runs[kind][task].fetch_add(1, Ordering::Relaxed);
                });
                assert!(runs.into_iter().flatten().all(|runs| runs.into_inner() == 1));
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_left_to_libtorch() {
        let x = noise(1, &[4, 5]);
        assert!(product(&x, &noise(2, &[4, 5])).unwrap().is_none());
        assert!(product(&x, &noise(2, &[5, 3]).to_kind(Kind::Double)).unwrap().is_none());
        assert!(product(&x.narrow(0, 0, 0), &noise(2, &[5, 3])).unwrap().is_none());
        assert!(product(&noise(1, &[2, 4, 5]), &noise(2, &[5, 3])).unwrap().is_none());
    }
}
