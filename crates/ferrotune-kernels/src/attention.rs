//! Causal attention over packed sequences.

use crate::{
    error::{Error, Result, check_shape},
    layout::SequenceLayout,
    rotary::{Sense, rotate_first},
};
use ferrotune_autograd::{BackwardContext, BoxedError, ForwardContext, Function, apply_one};
use tch::{Device, Kind, Tensor};

/// What attention is told beside its tensors.
#[derive(Debug, Clone, Copy)]
pub struct AttentionOptions {
    /// Factor of the scores, usually `head_dim^-1/2`.
    pub scale: f64,
    /// Number of tokens that a query sees, itself included; `None` is all that came before.
    pub sliding_window: Option<i64>,
}

/// Causal self-attention in which no sequence sees another.
///
/// `y_i = sum_j softmax_j(scale * q_i k_j) v_j` over the keys `j <= i` (and `i - j < sliding_window`) of the same sequence. Query head
/// `h` reads key head `h / (heads / kv_heads)`.
///
/// # Shapes
/// - `q`: `[total_tokens, heads, head_dim]`; `k`, `v`: `[total_tokens, kv_heads, head_dim]`
/// - returns `[total_tokens, heads, head_dim]`
///
/// # Errors
/// [`Error::Shape`] where the tensors do not fit each other or the layout; [`Error::Layout`] if a sequence has tokens in a cache
/// (see [`CachedAttention`](crate::CachedAttention)).
pub fn causal_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    layout: &SequenceLayout,
    options: AttentionOptions,
) -> Result<Tensor> {
    const NAME: &str = "causal_attention";
    check_shape(NAME, "q", q, &[layout.total_tokens(), -1, -1])?;
    let head_dim = q.size()[2];
    check_shape(NAME, "k", k, &[layout.total_tokens(), -1, head_dim])?;
    let kv_heads = k.size()[1];
    check_shape(NAME, "v", v, &[layout.total_tokens(), kv_heads, head_dim])?;
    check_heads(NAME, "q", q, q.size()[1], kv_heads)?;
    check_no_cache(layout)?;
    let segments = Segments { layout: layout.clone(), options };
    Ok(apply_one(PackedAttention(segments), &[Some(q), Some(k), Some(v)])?)
}

/// [`rotary`](crate::rotary()) of queries and keys, then [`causal_attention`].
///
/// In one function, so that backward keeps the rotated queries, keys and values alone, and not what they were made from.
///
/// # Shapes
/// - `qkv`: `[total_tokens, heads + 2 * kv_heads, head_dim]`, the queries, keys and values of a token side by side
/// - `cos`, `sin`: `[total_tokens, head_dim / 2]`
/// - returns `[total_tokens, heads, head_dim]`
///
/// # Errors
/// As [`causal_attention`].
pub fn rotary_attention(
    qkv: &Tensor,
    kv_heads: i64,
    cos: &Tensor,
    sin: &Tensor,
    layout: &SequenceLayout,
    options: AttentionOptions,
) -> Result<Tensor> {
    const NAME: &str = "rotary_attention";
    check_shape(NAME, "qkv", qkv, &[layout.total_tokens(), -1, -1])?;
    let (heads, head_dim) = (qkv.size()[1] - 2 * kv_heads, qkv.size()[2]);
    check_heads(NAME, "qkv", qkv, heads, kv_heads)?;
    check_shape(NAME, "cos", cos, &[layout.total_tokens(), head_dim / 2])?;
    check_shape(NAME, "sin", sin, &[layout.total_tokens(), head_dim - head_dim / 2])?;
    check_no_cache(layout)?;
    let segments = Segments { layout: layout.clone(), options };
    let tables = [cos.f_detach()?, sin.f_detach()?];
    Ok(apply_one(RotaryAttention { segments, tables, kv_heads }, &[Some(qkv)])?)
}

fn check_heads(function: &'static str, what: &str, x: &Tensor, heads: i64, kv_heads: i64) -> Result<()> {
    if heads > 0 && kv_heads > 0 && heads % kv_heads == 0 {
        return Ok(());
    }
    Err(Error::Shape {
        function,
        what: what.to_owned(),
        found: x.size(),
        expected: format!("query heads in a multiple of the {kv_heads} key/value heads"),
    })
}

fn check_no_cache(layout: &SequenceLayout) -> Result<()> {
    match layout.segments().iter().find(|segment| segment.past > 0) {
        None => Ok(()),
        Some(segment) => Err(Error::Layout {
            reason: "causal_attention has no cache; a sequence has tokens behind it (new, past)",
            found: vec![segment.len(), segment.past],
        }),
    }
}

/// `[tokens, heads, head_dim]` as `[1, heads, tokens, head_dim]`, a view.
fn heads(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_transpose(0, 1)?.f_unsqueeze(0)?)
}

/// Additive mask of `new` queries over `past + new` keys, or `None` where plain causality says the same.
fn segment_mask(new: i64, past: i64, options: AttentionOptions, like: &Tensor) -> Result<Option<Tensor>> {
    let window = options.sliding_window.filter(|&window| window < past + new);
    if past == 0 && window.is_none() {
        return Ok(None);
    }
    let queries = Tensor::f_arange_start(past, past + new, (Kind::Int64, like.device()))?.f_unsqueeze(1)?;
    let distance = queries.f_sub(&Tensor::f_arange(past + new, (Kind::Int64, like.device()))?)?;
    let mut hidden = distance.f_lt(0)?;
    if let Some(window) = window {
        hidden = hidden.f_logical_or(&distance.f_ge(window)?)?;
    }
    let mask = Tensor::f_zeros([new, past + new], (like.kind(), like.device()))?;
    Ok(Some(mask.f_masked_fill(&hidden, f64::NEG_INFINITY)?))
}

/// Attention of one sequence, all heads: the result and, on the CPU, the log-sum-exp that backward needs.
fn attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    causal: bool,
    mask: Option<&Tensor>,
    scale: f64,
) -> Result<(Tensor, Option<Tensor>)> {
    if q.device() == Device::Cpu {
        let (output, log_sum_exp) =
            Tensor::f_internal_scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, mask, scale)?;
        return Ok((output, Some(log_sum_exp)));
    }
    Ok((Tensor::f_scaled_dot_product_attention(q, k, v, mask, 0.0, causal, scale, true)?, None))
}

/// Attention sequence by sequence.
struct Segments {
    layout: SequenceLayout,
    options: AttentionOptions,
}

impl Segments {
    /// `x` restricted to one sequence, `[1, heads, tokens, head_dim]`.
    fn segment(x: &Tensor, rows: &std::ops::Range<i64>) -> Result<Tensor> {
        heads(&x.f_narrow(0, rows.start, rows.end - rows.start)?)
    }

    /// The result, and the log-sum-exps that backward needs.
    fn forward(&self, [q, k, v]: [&Tensor; 3]) -> Result<(Tensor, Vec<Tensor>)> {
        let output = Tensor::f_empty(q.size(), (q.kind(), q.device()))?;
        let mut log_sum_exps = Vec::with_capacity(self.layout.segments().len());
        for segment in self.layout.segments() {
            let mask = segment_mask(segment.len(), 0, self.options, q)?;
            let (attended, log_sum_exp) = attend(
                &Self::segment(q, &segment.rows)?,
                &Self::segment(k, &segment.rows)?,
                &Self::segment(v, &segment.rows)?,
                mask.is_none(),
                mask.as_ref(),
                self.options.scale,
            )?;
            Self::segment(&output, &segment.rows)?.f_copy_(&attended)?;
            log_sum_exps.extend(log_sum_exp);
        }
        Ok((output, log_sum_exps))
    }

    /// Writes the gradients of q, k and v into `results`.
    fn backward(
        &self,
        grad: &Tensor,
        [q, k, v]: [&Tensor; 3],
        output: &Tensor,
        log_sum_exps: &[Tensor],
        results: &[Tensor; 3],
    ) -> Result<()> {
        for (index, segment) in self.layout.segments().iter().enumerate() {
            let of = |x: &Tensor| Self::segment(x, &segment.rows);
            let mask = segment_mask(segment.len(), 0, self.options, q)?;
            let gradients = self.segment_gradients(
                &of(grad)?,
                [&of(q)?, &of(k)?, &of(v)?],
                &of(output)?,
                log_sum_exps.get(index),
                mask.as_ref(),
            )?;
            for (result, gradient) in results.iter().zip(&gradients) {
                of(result)?.f_copy_(gradient)?;
            }
        }
        Ok(())
    }

    /// Gradients of one sequence from the kept log-sum-exp (CPU), or by running its forward again under the graph (elsewhere).
    fn segment_gradients(
        &self,
        grad: &Tensor,
        [q, k, v]: [&Tensor; 3],
        output: &Tensor,
        log_sum_exp: Option<&Tensor>,
        mask: Option<&Tensor>,
    ) -> Result<[Tensor; 3]> {
        let causal = mask.is_none();
        if let Some(log_sum_exp) = log_sum_exp {
            let (grad_q, grad_k, grad_v) =
                Tensor::f_internal_scaled_dot_product_flash_attention_for_cpu_backward(
                    grad,
                    q,
                    k,
                    v,
                    output,
                    log_sum_exp,
                    0.0,
                    causal,
                    mask,
                    self.options.scale,
                )?;
            return Ok([grad_q, grad_k, grad_v]);
        }
        tch::with_grad(|| {
            let leaf = |x: &Tensor| -> Result<Tensor> { Ok(x.f_detach()?.f_set_requires_grad(true)?) };
            let leaves = [leaf(q)?, leaf(k)?, leaf(v)?];
            let [q, k, v] = &leaves;
            let (output, _) = attend(q, k, v, causal, mask, self.options.scale)?;
            let product = output.f_mul(grad)?.f_sum(grad.kind())?;
            let mut gradients = Tensor::f_run_backward(&[&product], &[q, k, v], false, false)?.into_iter();
            match (gradients.next(), gradients.next(), gradients.next()) {
                (Some(q), Some(k), Some(v)) => Ok([q, k, v]),
                _ => Err(tch::TchError::Torch("attention gave no gradient".to_owned()).into()),
            }
        })
    }
}

struct PackedAttention(Segments);

impl Function for PackedAttention {
    fn forward(
        &mut self,
        inputs: &[Option<&Tensor>],
        context: &mut ForwardContext,
    ) -> std::result::Result<Vec<Tensor>, BoxedError> {
        let [Some(q), Some(k), Some(v)] = inputs else { return Err("q, k and v are required".into()) };
        let (output, log_sum_exps) = self.0.forward([q, k, v])?;
        context.save(&[q, k, v, &output]);
        context.save(&log_sum_exps.iter().collect::<Vec<_>>());
        Ok(vec![output])
    }

    fn backward(
        &self,
        grads: &[Option<Tensor>],
        context: &BackwardContext,
    ) -> std::result::Result<Vec<Option<Tensor>>, BoxedError> {
        let (Some(grad), [q, k, v, output, log_sum_exps @ ..]) = (&grads[0], context.saved()) else {
            return Ok(vec![None, None, None]);
        };
        let results = [q.f_empty_like()?, k.f_empty_like()?, v.f_empty_like()?];
        self.0.backward(grad, [q, k, v], output, log_sum_exps, &results)?;
        Ok(results.into_iter().map(Some).collect())
    }
}

struct RotaryAttention {
    segments: Segments,
    /// Cosine and sine.
    tables: [Tensor; 2],
    kv_heads: i64,
}

impl RotaryAttention {
    /// Queries, keys and values of `qkv`, views.
    fn parts(&self, qkv: &Tensor) -> Result<[Tensor; 3]> {
        let heads = qkv.size()[1] - 2 * self.kv_heads;
        Ok([
            qkv.f_narrow(1, 0, heads)?,
            qkv.f_narrow(1, heads, self.kv_heads)?,
            qkv.f_narrow(1, heads + self.kv_heads, self.kv_heads)?,
        ])
    }

    fn rotate(&self, qkv: &Tensor, sense: Sense) -> Result<Tensor> {
        let [cos, sin] = &self.tables;
        rotate_first(qkv, qkv.size()[1] - self.kv_heads, cos, sin, sense)
    }
}

impl Function for RotaryAttention {
    fn forward(
        &mut self,
        inputs: &[Option<&Tensor>],
        context: &mut ForwardContext,
    ) -> std::result::Result<Vec<Tensor>, BoxedError> {
        let rotated = self.rotate(inputs[0].ok_or("qkv is required")?, Sense::Forward)?;
        let [q, k, v] = self.parts(&rotated)?;
        let (output, log_sum_exps) = self.segments.forward([&q, &k, &v])?;
        context.save(&[&rotated, &output]);
        context.save(&log_sum_exps.iter().collect::<Vec<_>>());
        Ok(vec![output])
    }

    fn backward(
        &self,
        grads: &[Option<Tensor>],
        context: &BackwardContext,
    ) -> std::result::Result<Vec<Option<Tensor>>, BoxedError> {
        let (Some(grad), [rotated, output, log_sum_exps @ ..]) = (&grads[0], context.saved()) else {
            return Ok(vec![None]);
        };
        let [q, k, v] = self.parts(rotated)?;
        let result = rotated.f_empty_like()?;
        self.segments.backward(grad, [&q, &k, &v], output, log_sum_exps, &self.parts(&result)?)?;
        Ok(vec![Some(self.rotate(&result, Sense::Backward)?)])
    }
}
