//! A product cut into tasks, each computed with the best instructions that the machine has.

use super::right_rows::{DenseRows, RightRows};
use super::tile::{self, GROUP};
use super::{
    FEW_ROWS, Factor, Matrix, Rows, Target, Term, in_parallel, number::Number, panel, vector::Vector,
};
use std::arch::x86_64::{__m256, __m512};
use std::ops::Range;

/// Columns of the right factor that one task computes where nothing is copied.
const FEW_COLUMNS: usize = 48;
/// Rows that meet a panel once, those of an adapter's gradient say, for which a panel that lies dense is not copied.
const UNCOPIED_ROWS: usize = 48;
/// Rows of a task, about: with fewer, the copy of the panel would weigh.
const TASK_ROWS: usize = 192;

/// Some columns of a result with few rows.
pub(in crate::cpu) struct Few {
    pub(in crate::cpu) rows: usize,
    pub(in crate::cpu) columns: usize,
    pub(in crate::cpu) depth: usize,
    pub(in crate::cpu) left: *const f32,
    pub(in crate::cpu) left_row_stride: usize,
    pub(in crate::cpu) target: *mut f32,
    pub(in crate::cpu) target_row_stride: usize,
    pub(in crate::cpu) scale: f32,
    pub(in crate::cpu) add: bool,
}

pub(in crate::cpu) fn level() -> Option<Level> {
    Level::available().next()
}

/// The instructions that the loops are compiled for.
#[derive(Clone, Copy, Debug)]
pub(in crate::cpu) enum Level {
    Avx512,
    Avx2,
}

impl Level {
    /// All that this machine has, best first.
    pub(in crate::cpu) fn available() -> impl Iterator<Item = Self> {
        crate::cpu::simd::Level::available().filter_map(|level| match level {
            crate::cpu::simd::Level::Avx512 => Some(Self::Avx512),
            crate::cpu::simd::Level::Avx2 => Some(Self::Avx2),
            crate::cpu::simd::Level::Baseline => None,
        })
    }

    /// Writes the sum of the terms.
    ///
    /// # Safety
    /// `target` is memory that nobody else reads or writes meanwhile, and the terms fit it; the first covers it, unless it holds sums.
    pub(super) unsafe fn fill(self, target: Target, terms: &[Term]) {
        if target.rows <= FEW_ROWS && terms.iter().all(Term::is_dense_along_depth) {
            in_parallel(target.columns.div_ceil(FEW_COLUMNS), work(terms), |task| {
                let start = task * FEW_COLUMNS;
                // SAFETY: each task writes columns of its own.
                unsafe { self.fill_few(target, terms, start..(start + FEW_COLUMNS).min(target.columns)) };
            });
            return;
        }
        // SAFETY: as the caller says.
        unsafe { self.fill_panels(target, terms, 1) };
    }

    /// Writes each term to its own columns of a result.
    ///
    /// # Safety
    /// As [`Level::fill`], but that the terms cover the target side by side; all have the same left factor.
    pub(super) unsafe fn fill_beside(self, target: Target, terms: &[Term]) {
        if target.rows > FEW_ROWS || !terms.iter().all(Term::is_dense_along_depth) {
            // SAFETY: as the caller says.
            unsafe { self.fill_panels(target, terms, terms.len()) };
            return;
        }
        in_parallel(target.columns.div_ceil(FEW_COLUMNS), work(terms), |task| {
            let columns = task * FEW_COLUMNS..((task + 1) * FEW_COLUMNS).min(target.columns);
            for term in terms {
                // SAFETY: each task writes columns of its own, and a term by itself is written, not added.
                unsafe { self.fill_few(target, std::slice::from_ref(term), columns.clone()) };
            }
        });
    }

    /// Writes the sum of the terms, of which so many lie side by side.
    ///
    /// # Safety
    /// As [`Level::fill`] or, where all lie side by side, [`Level::fill_beside`].
    unsafe fn fill_panels(self, target: Target, terms: &[Term], beside: usize) {
        let panels = target.columns.div_ceil(panel::WIDTH);
        let threads = usize::try_from(tch::get_num_threads()).unwrap_or(1).max(1);
        // Several tasks for each thread, so that one that is held up leaves its share to the others; as many for each, where the parts do not
        // become so short that copies of the panel weigh.
        let parts = (4 * threads).div_ceil(panels).min(target.rows.div_ceil(TASK_ROWS)).max(1);
        let even = parts.next_multiple_of(threads);
        let parts = if parts > 1 && target.rows / even >= TASK_ROWS / 2 { even } else { parts };
        let rows_of_part = target.rows.div_ceil(parts);
        // None of them is empty.
        let parts = target.rows.div_ceil(rows_of_part);
        in_parallel(panels * parts, work(terms), |task| {
            let (part, panel) = (task % parts, task / parts);
            let start = part * rows_of_part;
            let rows = start..(start + rows_of_part).min(target.rows);
            let first = panel * panel::WIDTH;
            let columns = first..(first + panel::WIDTH).min(target.columns);
            // SAFETY: each task writes rows and columns of its own.
            unsafe { self.fill_panel(&Part { target, terms, beside, rows, columns }) };
        });
    }

    /// Writes a block of rows, or adds to it.
    ///
    /// # Safety
    /// The pointers of `block` lead to as many numbers as its counts and strides say; its columns are a multiple of [`GROUP`], for a panel's
    /// numbers are read in whole registers.
    pub(super) unsafe fn rows(self, block: &Rows) {
        debug_assert!(block.columns.is_multiple_of(GROUP));
        // SAFETY: the levels come from `available`, which asked the machine; the rest as the caller says.
        unsafe {
            match self {
                Self::Avx512 => rows_avx512(block),
                Self::Avx2 => rows_avx2(block),
            }
        }
    }

    /// Writes some columns of a result with few rows.
    ///
    /// # Safety
    /// As [`Level::fill`]; the columns exist and no other task writes them.
    unsafe fn fill_few(self, target: Target, terms: &[Term], columns: Range<usize>) {
        for (index, term) in terms.iter().enumerate() {
            let reached = term.columns_among(columns.clone());
            if reached.is_empty() {
                continue;
            }
            // SAFETY: those that are reached are columns of the target and, counted from the term's first, of its right factor; the depth is
            // dense in both factors.
            unsafe {
                let first = reached.start - term.first_column;
                let block = Few {
                    rows: target.rows,
                    columns: reached.len(),
                    depth: term.left.columns,
                    left: term.left.start.as_ptr(),
                    left_row_stride: term.left.row_stride,
                    target: target.start.as_ptr().add(reached.start),
                    target_row_stride: target.columns,
                    scale: term.scale,
                    add: index > 0 || target.holds_sums,
                };
                match &term.right {
                    Factor::Singles(right) => self.few(&block, columns_from(right, first)),
                    Factor::Halves(right) => self.few(&block, columns_from(right, first)),
                    Factor::Bytes(right) => self.few(&block, right.rows().from(first)),
                    Factor::Nibbles(right) => self.few(&block, right.rows().from(first)),
                }
            }
        }
    }

    /// # Safety
    /// As [`tile::few`].
    unsafe fn few(self, block: &Few, right: impl RightRows) {
        // SAFETY: the levels come from `available`, which asked the machine; the rest as the caller says.
        unsafe {
            match self {
                Self::Avx512 => few_avx512(block, right),
                Self::Avx2 => few_avx2(block, right),
            }
        }
    }

    /// Writes some columns of some rows, which a panel holds.
    ///
    /// # Safety
    /// As [`Level::fill_panels`]; rows and columns exist and no other task writes them.
    unsafe fn fill_panel(self, part: &Part) {
        // SAFETY: the levels come from `available`, which asked the machine; the rest as the caller says.
        panel::with_panel(|panel| unsafe {
            match self {
                Self::Avx512 => panel_avx512(part, panel),
                Self::Avx2 => panel_avx2(part, panel),
            }
        });
    }
}

/// Some columns of some rows of a result, which a panel holds.
struct Part<'a> {
    target: Target,
    terms: &'a [Term<'a>],
    /// So many terms lie side by side.
    beside: usize,
    rows: Range<usize>,
    columns: Range<usize>,
}

/// Sums and products of the terms.
fn work(terms: &[Term]) -> usize {
    terms.iter().map(|term| term.left.rows * term.left.columns * term.right.shape()[1]).sum()
}

/// The columns of a right factor from `first` on, which lie dense.
fn columns_from<T: Number>(right: &Matrix<T>, first: usize) -> DenseRows<T> {
    let stride = right.column_stride;
    DenseRows { start: right.start.as_ptr().wrapping_add(first * stride), stride }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
unsafe fn few_avx512(block: &Few, right: impl RightRows) {
    // SAFETY: as the caller says; the instructions are enabled here.
    unsafe { tile::few::<__m512>(block, right) };
}

#[target_feature(enable = "avx2,fma")]
unsafe fn few_avx2(block: &Few, right: impl RightRows) {
    // SAFETY: as the caller says; the instructions are enabled here.
    unsafe { tile::few::<__m256>(block, right) };
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
unsafe fn panel_avx512(part: &Part, panel: &mut [f32]) {
    // SAFETY: as the caller says; the instructions are enabled here.
    unsafe { fill_panel::<__m512>(part, panel, |block| one_panel_avx512(block)) };
}

#[target_feature(enable = "avx2,fma")]
unsafe fn panel_avx2(part: &Part, panel: &mut [f32]) {
    // SAFETY: as the caller says; the instructions are enabled here.
    unsafe { fill_panel::<__m256>(part, panel, |block| rows_avx2(block)) };
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
unsafe fn rows_avx512(block: &Rows) {
    let whole = block.columns / panel::WIDTH * panel::WIDTH;
    for (first, columns) in [(0, whole), (whole, block.columns - whole)] {
        if columns > 0 {
            let (panel, target) = (block.panel.wrapping_add(first), block.target.wrapping_add(first));
            // SAFETY: columns of the block, in registers that they fill.
            unsafe { one_panel_avx512(&Rows { columns, panel, target, ..*block }) };
        }
    }
}

/// # Safety
/// As [`tile::rows`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
unsafe fn one_panel_avx512(block: &Rows) {
    // 24 of the 32 registers hold sums, or fewer where the result is narrow.
    // SAFETY: as the caller says; the instructions are enabled here.
    unsafe {
        match block.columns.div_ceil(16) {
            1 => tile::rows::<__m512, 16, 1>(block),
            2 => tile::rows::<__m512, 8, 2>(block),
            _ => tile::rows::<__m512, 8, 3>(block),
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn rows_avx2(block: &Rows) {
    // 12 of the 16 registers hold sums.
    // SAFETY: as the caller says; the instructions are enabled here.
    unsafe { tile::rows::<__m256, 6, 2>(block) };
}

/// The factor whose columns are read where they lie: so few rows meet them that a copy into a panel would cost as much as their product.
fn read_in_place<'a>(terms: &'a [Term], rows: usize, columns: &Range<usize>) -> Option<&'a Matrix<'a>> {
    match terms {
        [term @ Term { right: Factor::Singles(right), .. }]
            if rows <= UNCOPIED_ROWS
                && term.scale == 1.0
                && right.column_stride == 1
                && columns.len().is_multiple_of(GROUP)
                && term.columns_among(columns.clone()) == *columns =>
        {
            Some(right)
        }
        _ => None,
    }
}

/// # Safety
/// As [`Level::fill_panel`]; inlined into code with the instructions of `V`.
#[inline(always)]
unsafe fn fill_panel<V: Vector>(part: &Part, panel: &mut [f32], compute: impl Fn(&Rows)) {
    let Part { target, terms, beside, rows, columns } = part;
    for (index, terms) in terms.chunks(*beside).enumerate() {
        if terms.iter().all(|term| term.columns_among(columns.clone()).is_empty()) {
            continue;
        }
        let left = &terms[0].left;
        for depth in panel::depths(left.columns) {
            // SAFETY: `depth` are rows of the right factors and columns of the left one; `rows` and `columns` are in the target; a panel of
            // that depth fits the scratch, and one that is read in place is columns of the factor in whole groups.
            unsafe {
                let (panel, panel_stride) = match read_in_place(terms, rows.len(), columns) {
                    Some(right) => {
                        let first = columns.start - terms[0].first_column;
                        let start = right.start.as_ptr().add(depth.start * right.row_stride + first);
                        (start.cast_const(), right.row_stride)
                    }
                    None => {
                        panel::pack::<V>(terms, depth.clone(), columns.clone(), panel);
                        (panel.as_ptr(), panel::WIDTH)
                    }
                };
                compute(&Rows {
                    rows: rows.len(),
                    columns: columns.len(),
                    depth: depth.len(),
                    left: left
                        .start
                        .as_ptr()
                        .add(rows.start * left.row_stride + depth.start * left.column_stride),
                    left_row_stride: left.row_stride,
                    left_depth_stride: left.column_stride,
                    panel,
                    panel_stride,
                    target: target.start.as_ptr().add(rows.start * target.columns + columns.start),
                    target_row_stride: target.columns,
                    add: index > 0 || depth.start > 0 || target.holds_sums,
                });
            }
        }
    }
}
