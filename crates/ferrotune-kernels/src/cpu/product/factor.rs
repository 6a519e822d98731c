//! The right factor of a product, in whatever form its numbers are kept.

use super::{
    Matrix,
    blocks::{BlockMatrix, Bytes, Nibbles},
};
use half::bf16;
use tch::Tensor;

/// The right factor of a product of f32: of f32, or of numbers in fewer bits, each of which is one of f32.
#[derive(Clone, Copy)]
pub(crate) enum Factor<'a> {
    Singles(Matrix<'a>),
    Halves(Matrix<'a, bf16>),
    Bytes(BlockMatrix<'a, Bytes>),
    Nibbles(BlockMatrix<'a, Nibbles>),
}

impl<'a> From<Matrix<'a>> for Factor<'a> {
    fn from(matrix: Matrix<'a>) -> Self {
        Self::Singles(matrix)
    }
}

impl<'a> Factor<'a> {
    /// A tensor `[rows, columns]`; `None` if it is neither f32 nor bf16 on the CPU, or is empty.
    pub(crate) fn of(tensor: &'a Tensor) -> Option<Self> {
        Matrix::of(tensor).map(Self::Singles).or_else(|| Matrix::of(tensor).map(Self::Halves))
    }

    /// Its transpose.
    pub(crate) fn turned(self) -> Self {
        match self {
            Self::Singles(matrix) => Self::Singles(matrix.turned()),
            Self::Halves(matrix) => Self::Halves(matrix.turned()),
            Self::Bytes(matrix) => Self::Bytes(matrix.turned()),
            Self::Nibbles(matrix) => Self::Nibbles(matrix.turned()),
        }
    }

    /// Numbers of rows and of columns.
    pub(super) fn shape(&self) -> [usize; 2] {
        match self {
            Self::Singles(matrix) => [matrix.rows, matrix.columns],
            Self::Halves(matrix) => [matrix.rows, matrix.columns],
            Self::Bytes(matrix) => matrix.shape(),
            Self::Nibbles(matrix) => matrix.shape(),
        }
    }

    /// Whether the numbers of a column lie side by side.
    pub(super) fn has_dense_columns(&self) -> bool {
        match self {
            Self::Singles(matrix) => matrix.row_stride == 1,
            Self::Halves(matrix) => matrix.row_stride == 1,
            Self::Bytes(matrix) => matrix.turned,
            Self::Nibbles(matrix) => matrix.turned,
        }
    }

    /// The number of a row and column.
    pub(super) fn number(&self, row: usize, column: usize) -> f32 {
        let [rows, columns] = self.shape();
        assert!(row < rows && column < columns, "row {row}, column {column} of {rows} x {columns}");
        // SAFETY: it exists.
        unsafe {
            match self {
                Self::Singles(matrix) => matrix.number(row, column),
                Self::Halves(matrix) => matrix.number(row, column),
                Self::Bytes(matrix) => matrix.number(row, column),
                Self::Nibbles(matrix) => matrix.number(row, column),
            }
        }
    }
}
