//! Causal attention of new tokens over a cache of keys and values.

mod fused;

use crate::{
    attention::{AttentionOptions, check_window},
    error::{Error, Result, check_shape},
    layout::SequenceLayout,
    rotary::{Sense, rotate_first},
};
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// Rotary embedding and attention of one pass over a cache, the same for each layer: outside the graph, for generation.
///
/// The cache of a layer is a tensor `[rows, 2 * kv_heads, head_dim]`: a row holds the keys, then the values, of one token. Which rows
/// belong to a sequence is said here, in ranges, so rows may lie anywhere and sequences may share them: two that begin alike need the
/// beginning once. Exactly those rows are read; what the others hold, NaN included, changes nothing.
///
/// ```
/// use ferrotune_kernels::{AttentionOptions, CachedAttention, SequenceLayout};
/// use tch::{Device, Kind, Tensor};
/// let options = (Kind::Float, Device::Cpu);
/// let (heads, kv_heads, head_dim) = (4, 2, 8);
/// let mut cache = Tensor::empty([6, 2 * kv_heads, head_dim], options);
/// // Two sequences of three and two tokens that share their first: row 0.
/// let layout = SequenceLayout::continuing(&[(1, 0), (2, 1), (1, 1)])?;
/// let rows = [vec![0..1], vec![0..3], vec![0..1, 5..6]];
/// let attention = AttentionOptions { scale: 0.35, sliding_window: None };
/// let attention = CachedAttention::new(&layout, &rows, attention, Device::Cpu)?;
/// let qkv = Tensor::ones([4, heads + 2 * kv_heads, head_dim], options);
/// let angles = Tensor::zeros([4, head_dim / 2], options);
/// let y = attention.forward(&qkv, &angles.cos(), &angles.sin(), &mut cache)?;
/// assert_eq!(y.size(), [4, heads, head_dim]);
/// # Ok::<(), ferrotune_kernels::Error>(())
/// ```
#[derive(Debug)]
pub struct CachedAttention {
    sequences: Vec<Sequence>,
    /// The rows of the new tokens, in the order of the layout.
    new_rows: Tensor,
    /// Rows that a cache must have.
    capacity: i64,
    options: AttentionOptions,
}

/// One sequence of the pass.
#[derive(Debug)]
pub(crate) struct Sequence {
    /// Its new tokens.
    pub(crate) tokens: Range<usize>,
    /// The rows of the cache that hold the keys and values of all its tokens, in their order.
    pub(crate) rows: Vec<Range<usize>>,
}

impl Sequence {
    /// Number of its tokens.
    pub(crate) fn len(&self) -> usize {
        self.rows.iter().map(Range::len).sum()
    }

    /// Number of its tokens before the new ones.
    pub(crate) fn past(&self) -> usize {
        self.len() - self.tokens.len()
    }
}

impl CachedAttention {
    /// Attention of the sequences of `layout`, of which `rows` holds the rows of all tokens, those in the past and then the new ones.
    ///
    /// A sequence may read rows that another sequence of the same pass fills.
    ///
    /// # Errors
    /// [`Error::Layout`] if there are more or fewer lists than sequences, a sequence has more or fewer rows than tokens, or a row is
    /// negative; [`Error::InvalidOption`] for a window that hides the token
    /// itself.
    pub fn new(
        layout: &SequenceLayout,
        rows: &[Vec<Range<i64>>],
        options: AttentionOptions,
        device: Device,
    ) -> Result<Self> {
        check_window("CachedAttention", options)?;
        if layout.segments().len() != rows.len() {
            return Err(Error::Layout {
                reason: "a list of cached rows for each sequence is needed (sequences, lists)",
                found: vec![layout.segments().len() as i64, rows.len() as i64],
            });
        }
        let (mut sequences, mut new_rows, mut capacity) = (Vec::with_capacity(rows.len()), Vec::new(), 0);
        for (segment, rows) in layout.segments().iter().zip(rows) {
            let count: i64 = rows.iter().map(|rows| (rows.end - rows.start).max(0)).sum();
            if count != segment.past + segment.len() || rows.iter().any(|rows| rows.start < 0) {
                return Err(Error::Layout {
                    reason: "a sequence needs one cached row for each of its tokens (new, past, rows)",
                    found: vec![segment.len(), segment.past, count],
                });
            }
            new_rows.extend(rows.iter().cloned().flatten().skip(segment.past as usize));
            capacity = rows.iter().map(|rows| rows.end).fold(capacity, i64::max);
            let unsigned = |range: &Range<i64>| range.start as usize..range.end as usize;
            sequences.push(Sequence {
                tokens: unsigned(&segment.rows),
                rows: rows.iter().filter(|rows| !rows.is_empty()).map(unsigned).collect(),
            });
        }
        let new_rows = Tensor::f_from_slice(&new_rows)?.f_to_device(device)?;
        Ok(Self { sequences, new_rows, capacity, options })
    }

    /// Rotates queries and keys, writes the keys and values of the new tokens into their rows of `cache`, and attends: with `p` the
    /// position of a query, `y = sum_j softmax_j(scale * q k_j) v_j` over the positions `j <= p` (and `p - j < sliding_window`) of its
    /// sequence. Query head `h` reads key head `h / (heads / kv_heads)`.
    ///
    /// # Shapes
    /// - `qkv`: `[total_tokens, heads + 2 * kv_heads, head_dim]`, the queries, keys and values of a token side by side
    /// - `cos`, `sin`: `[total_tokens, head_dim / 2]`
    /// - `cache`: `[rows, 2 * kv_heads, head_dim]`
    /// - returns `[total_tokens, heads, head_dim]`
    ///
    /// # Errors
    /// [`Error::Shape`] where the tensors do not fit each other, the layout or its rows.
    pub fn forward(&self, qkv: &Tensor, cos: &Tensor, sin: &Tensor, cache: &mut Tensor) -> Result<Tensor> {
        const NAME: &str = "CachedAttention";
        let tokens = self.new_rows.size()[0];
        check_shape(NAME, "qkv", qkv, &[tokens, -1, -1])?;
        let (all_heads, head_dim) = (qkv.size()[1], qkv.size()[2]);
        check_shape(NAME, "cos", cos, &[tokens, head_dim / 2])?;
        check_shape(NAME, "sin", sin, &[tokens, head_dim - head_dim / 2])?;
        check_shape(NAME, "cache", cache, &[-1, -1, head_dim])?;
        let (rows, kv_heads) = (cache.size()[0], cache.size()[1] / 2);
        let heads = all_heads - 2 * kv_heads;
        if rows < self.capacity || kv_heads < 1 || cache.size()[1] % 2 != 0 {
            let expected =
                format!("at least {} rows of as many keys as values, one head or more", self.capacity);
            return Err(Error::Shape {
                function: NAME,
                what: "cache".to_owned(),
                found: cache.size(),
                expected,
            });
        }
        if heads < 1 || heads % kv_heads != 0 {
            return Err(Error::Shape {
                function: NAME,
                what: "qkv".to_owned(),
                found: qkv.size(),
                expected: format!("query heads in a multiple of the {kv_heads} key/value heads"),
            });
        }
        let _no_grad = tch::no_grad_guard();
        let rotated = rotate_first(qkv, heads + kv_heads, cos, sin, Sense::Forward)?;
        let _ = cache.f_index_copy_(0, &self.new_rows, &rotated.f_narrow(1, heads, 2 * kv_heads)?)?;
        let q = rotated.f_narrow(1, 0, heads)?;
        match fused::attend(&self.sequences, &q, cache, self.options)? {
            Some(y) => Ok(y),
            None => torch(&self.sequences, &q, cache, self.options),
        }
    }
}

/// The attention in libtorch's operators, sequence by sequence.
fn torch(sequences: &[Sequence], q: &Tensor, cache: &Tensor, options: AttentionOptions) -> Result<Tensor> {
    let kv_heads = cache.size()[1] / 2;
    let heads = |x: &Tensor| -> Result<Tensor> { Ok(x.f_transpose(0, 1)?.f_unsqueeze(0)?) };
    let mut parts = Vec::with_capacity(sequences.len());
    for sequence in sequences {
        let rows: Vec<i64> = sequence.rows.iter().cloned().flatten().map(|row| row as i64).collect();
        let cached = cache.f_index_select(0, &Tensor::f_from_slice(&rows)?.f_to_device(q.device())?)?;
        let (k, v) = (cached.f_narrow(1, 0, kv_heads)?, cached.f_narrow(1, kv_heads, kv_heads)?);
        let q = q.f_narrow(0, sequence.tokens.start as i64, sequence.tokens.len() as i64)?;
        let mask = visible(sequence, options.sliding_window, q.device())?;
        let attended = Tensor::f_scaled_dot_product_attention(
            &heads(&q)?,
            &heads(&k)?,
            &heads(&v)?,
            Some(&mask),
            0.0,
            false,
            options.scale,
            true,
        )?;
        parts.push(attended.f_squeeze_dim(0)?.f_transpose(0, 1)?);
    }
    Ok(Tensor::f_cat(&parts, 0)?)
}

/// Which tokens each new one sees, `[new, past + new]`.
fn visible(sequence: &Sequence, window: Option<i64>, device: Device) -> Result<Tensor> {
    let (past, total) = (sequence.past() as i64, sequence.len() as i64);
    let queries = Tensor::f_arange_start(past, total, (Kind::Int64, device))?.f_unsqueeze(1)?;
    let distance = queries.f_sub(&Tensor::f_arange(total, (Kind::Int64, device))?)?;
    let seen = distance.f_ge(0)?;
    Ok(match window {
        Some(window) => seen.f_logical_and(&distance.f_lt(window)?)?,
        None => seen,
    })
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "a list of ranges may have one")]
mod tests {
    use super::*;
    use crate::cpu::{assert_close, noise};

    /// `y` of one sequence, query by query and head by head.
    fn plain(q: &Tensor, k: &Tensor, v: &Tensor, past: i64, options: AttentionOptions) -> Tensor {
        let group = q.size()[1] / k.size()[1];
        let rows = (0..q.size()[0]).map(|token| {
            let end = past + token + 1;
            let start = options.sliding_window.map_or(0, |window| (end - window).max(0));
            let heads = (0..q.size()[1]).map(|head| {
                let of = |x: &Tensor| x.select(1, head / group).narrow(0, start, end - start);
                let scores = of(k).mv(&q.get(token).get(head)) * options.scale;
                of(v).tr().mv(&scores.softmax(0, Kind::Double))
            });
            Tensor::stack(&heads.collect::<Vec<_>>(), 0)
        });
        Tensor::stack(&rows.collect::<Vec<_>>(), 0)
    }

    struct Shape {
        heads: i64,
        kv_heads: i64,
        head_dim: i64,
        window: Option<i64>,
    }

    const SHAPES: [Shape; 5] = [
        Shape { heads: 9, kv_heads: 3, head_dim: 64, window: None },
        Shape { heads: 4, kv_heads: 2, head_dim: 8, window: Some(5) },
        Shape { heads: 3, kv_heads: 3, head_dim: 33, window: None },
        Shape { heads: 6, kv_heads: 1, head_dim: 80, window: Some(70) },
        Shape { heads: 1, kv_heads: 1, head_dim: 1, window: Some(1) },
    ];

    /// Rows of sequences of these `(new, past)`: each sequence in pieces, the pieces of all of them in a muddle.
    fn scattered(lengths: &[(i64, i64)]) -> (Vec<Vec<Range<i64>>>, i64) {
        let mut rows = vec![Vec::new(); lengths.len()];
        let (mut left, mut next) = (lengths.iter().map(|(new, past)| new + past).collect::<Vec<_>>(), 1);
        for piece in [3, 1, 70, 150, i64::MAX] {
            for (rows, left) in rows.iter_mut().zip(&mut left).rev() {
                let taken = piece.min(*left);
                rows.push(next..next + taken);
                *left -= taken;
                next += taken + 1;
            }
        }
        (rows, next)
    }

    #[test]
    fn both_paths_are_the_plain_formula_at_odd_lengths() {
        for shape in SHAPES {
            let Shape { heads, kv_heads, head_dim, window } = shape;
            let options = AttentionOptions { scale: 0.4, sliding_window: window };
            let lengths = [(1, 0), (1, 1), (1, 63), (7, 0), (1, 64), (1, 200), (20, 65), (2, 1), (70, 0)];
            let (rows, capacity) = scattered(&lengths);
            let layout = SequenceLayout::continuing(&lengths).unwrap();
            let attention = CachedAttention::new(&layout, &rows, options, Device::Cpu).unwrap();
            let mut cache =
                Tensor::full([capacity, 2 * kv_heads, head_dim], f64::NAN, (Kind::Float, Device::Cpu));
            let all = noise(1, &[capacity, 2 * kv_heads, head_dim]);
            let index = |rows: &[Range<i64>]| {
                Tensor::from_slice(&rows.iter().cloned().flatten().collect::<Vec<i64>>())
            };
            let mut qkv = noise(2, &[layout.total_tokens(), heads + 2 * kv_heads, head_dim]);
            let mut expected = Vec::new();
            for (segment, rows) in layout.segments().iter().zip(&rows) {
                let place = index(rows);
                let cached = all.index_select(0, &place);
                let past = place.narrow(0, 0, segment.past);
                let _ = cache.index_copy_(0, &past, &all.index_select(0, &past));
                let new = cached.narrow(0, segment.past, segment.len());
                qkv.narrow(0, segment.rows.start, segment.len()).narrow(1, heads, 2 * kv_heads).copy_(&new);
                let q = qkv.narrow(0, segment.rows.start, segment.len()).narrow(1, 0, heads);
                let [q, k, v] = [q, cached.narrow(1, 0, kv_heads), cached.narrow(1, kv_heads, kv_heads)]
                    .map(|x| x.to_kind(Kind::Double));
                expected.push(plain(&q, &k, &v, segment.past, options));
            }
            let expected = Tensor::cat(&expected, 0).to_kind(Kind::Float);
            let angles = Tensor::zeros([layout.total_tokens(), head_dim / 2], (Kind::Float, Device::Cpu));
            if head_dim % 2 == 0 {
                let y = attention.forward(&qkv, &angles.cos(), &angles.sin(), &mut cache).unwrap();
                assert_close(&y, &expected, 1e-6);
            } else {
                let _ = cache.index_copy_(0, &attention.new_rows, &qkv.narrow(1, heads, 2 * kv_heads));
            }
            let q = qkv.narrow(1, 0, heads);
            let y = fused::attend(&attention.sequences, &q, &cache, options).unwrap().unwrap();
            assert_close(&y, &expected, 1e-6);
            assert_close(&torch(&attention.sequences, &q, &cache, options).unwrap(), &expected, 1e-6);
            qkv = qkv.to_kind(Kind::BFloat16);
            let (q, cache) = (qkv.narrow(1, 0, heads), cache.to_kind(Kind::BFloat16));
            assert!(fused::attend(&attention.sequences, &q, &cache, options).unwrap().is_none());
            let y = torch(&attention.sequences, &q, &cache, options).unwrap();
            assert_close(&y.to_kind(Kind::Float), &expected, 2e-2);
        }
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let lengths = [(1, 150), (200, 30), (1, 90), (3, 20)];
        let (rows, capacity) = scattered(&lengths);
        let layout = SequenceLayout::continuing(&lengths).unwrap();
        let options = AttentionOptions { scale: 0.2, sliding_window: None };
        let attention = CachedAttention::new(&layout, &rows, options, Device::Cpu).unwrap();
        let (q, cache) = (noise(1, &[205, 9, 64]), noise(2, &[capacity, 6, 64]));
        let of = |threads| {
            tch::set_num_threads(threads);
            fused::attend(&attention.sequences, &q, &cache, options).unwrap().unwrap()
        };
        assert_eq!(of(1), of(3));
    }

    #[test]
    fn a_score_that_grows_far_beyond_the_first_is_no_overflow() {
        // The later key outweighs the first 64 by e^200: all weight is on it.
        let options = AttentionOptions { scale: 1.0, sliding_window: None };
        for (new, head_dim) in [(1, 4), (1, 16), (2, 16)] {
            let layout = SequenceLayout::continuing(&[(new, 100 - new)]).unwrap();
            let attention = CachedAttention::new(&layout, &[vec![0..100]], options, Device::Cpu).unwrap();
            let cache = Tensor::ones([100, 2, head_dim], (Kind::Float, Device::Cpu));
            let _ = cache.get(80).fill_(50.0);
            let q = Tensor::ones([new, 1, head_dim], (Kind::Float, Device::Cpu));
            let y = fused::attend(&attention.sequences, &q, &cache, options).unwrap().unwrap();
            assert_close(&y, &(q.ones_like() * 50.0), 1e-6);
        }
    }

    #[test]
    fn rows_that_do_not_fit_are_refused() {
        let options = AttentionOptions { scale: 1.0, sliding_window: None };
        let layout = SequenceLayout::continuing(&[(1, 2)]).unwrap();
        for rows in [&[][..], &[vec![0..2]], &[vec![0..3], vec![3..4]], &[vec![-1..2]], &[vec![0..2, 3..3]]] {
            let found = CachedAttention::new(&layout, rows, options, Device::Cpu);
            assert!(matches!(found, Err(Error::Layout { .. })), "{rows:?}");
        }
        let blind = AttentionOptions { scale: 1.0, sliding_window: Some(0) };
        let found = CachedAttention::new(&layout, &[vec![0..3]], blind, Device::Cpu);
        assert!(matches!(found, Err(Error::InvalidOption { .. })));
        let attention = CachedAttention::new(&layout, &[vec![2..5]], options, Device::Cpu).unwrap();
        let table = noise(1, &[1, 2]);
        let refused = |qkv: &[i64], cache: &[i64]| {
            attention.forward(&noise(1, qkv), &table, &table, &mut noise(2, cache)).unwrap_err().to_string()
        };
        assert!(refused(&[1, 4, 4], &[4, 2, 4]).contains("at least 5 rows"));
        assert!(refused(&[1, 4, 4], &[5, 3, 4]).contains("[5, 3, 4]"));
        assert!(refused(&[1, 7, 4], &[5, 4, 4]).contains("multiple of the 2"));
        assert!(refused(&[2, 4, 4], &[5, 2, 4]).contains("qkv has shape [2, 4, 4], expected [1, -1, -1]"));
        assert!(refused(&[1, 4, 4], &[5, 2, 6]).contains("cache"));
    }
}
