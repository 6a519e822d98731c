//! Products in 16 bits with few different numbers of rows.

use crate::error::Result;
use tch::{Device, Kind, Tensor};

/// Rows up to which a product is left as it is: to generate, a few sequences make a step each.
const FEW: i64 = 32;
/// So many numbers of rows between a power of two and the next are left: an eighth of the rows is added at most, a 24th on average.
const STEPS: i64 = 8;
/// Fewest rows between two of them; below 256 there are fewer than eight, and more is added.
const SMALLEST_STEP: i64 = 16;

/// `[rows, columns]` for a product in its kind: on the CPU, rows of zeros follow it in 16 bits, up to a number of rows that batches of
/// other lengths have, too.
///
/// For each shape of a product in 16 bits libtorch has oneDNN compile a program. That takes milliseconds and some hundred kilobytes,
/// and a thousand of them are kept; packed batches hardly ever have the same number of rows twice.
pub(crate) fn filled_up(x: &Tensor) -> Result<Tensor> {
    let rows = x.size()[0];
    let wanted = match (x.device(), x.kind()) {
        (Device::Cpu, Kind::BFloat16 | Kind::Half) => shared(rows),
        _ => rows,
    };
    if wanted == rows {
        return Ok(x.shallow_clone());
    }
    let filled = Tensor::f_empty([wanted, x.size()[1]], (x.kind(), x.device()))?;
    filled.f_narrow(0, 0, rows)?.f_copy_(x)?;
    let _ = filled.f_narrow(0, rows, wanted - rows)?.f_zero_()?;
    Ok(filled)
}

/// The first rows of a product of filled-up rows.
pub(crate) fn first_rows(filled: Tensor, rows: i64) -> Result<Tensor> {
    if filled.size()[0] == rows { Ok(filled) } else { Ok(filled.f_narrow(0, 0, rows)?) }
}

/// The number of rows that a batch of `rows` shares with others.
fn shared(rows: i64) -> i64 {
    if rows <= FEW {
        return rows;
    }
    let power = rows.unsigned_abs().next_power_of_two() as i64;
    let step = (power / 2 / STEPS).max(SMALLEST_STEP);
    (rows + step - 1) / step * step
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::noise;

    #[test]
    fn few_numbers_of_rows_are_left_and_few_rows_are_added() {
        let mut numbers: Vec<i64> = (1..=4096).map(shared).collect();
        for (rows, &shared) in (1..).zip(&numbers) {
            let added = if rows <= FEW { 0 } else { (rows / 8).max(SMALLEST_STEP - 1) };
            assert!((rows..=rows + added).contains(&shared), "{rows} to {shared}");
        }
        numbers.dedup();
        assert!(numbers.is_sorted() && numbers.len() < 32 + 4 + 6 * 8 + 1, "{numbers:?}");
    }

    #[test]
    fn zeros_follow_in_16_bits_and_nothing_in_others() {
        let x = noise(1, &[37, 3]);
        assert_eq!(filled_up(&x).unwrap().size(), [37, 3]);
        for kind in [Kind::BFloat16, Kind::Half] {
            let x = x.to_kind(kind);
            let filled = filled_up(&x).unwrap();
            assert_eq!(filled.size(), [48, 3]);
            assert!(filled.narrow(0, 0, 37).equal(&x));
            assert_eq!(filled.narrow(0, 37, 11).abs().sum(Kind::Float).double_value(&[]), 0.0);
        }
    }
}
