//! Causal attention over packed sequences.

use crate::{
    cpu,
    error::{Error, Result, check_shape},
    layout::SequenceLayout,
    rotary::{Sense, rotate_first, rotate_first_in_place},
};
use ferrotune_autograd::{BackwardContext, BoxedError, ForwardContext, Function, apply_one};
use std::ops::Range;
use tch::{Device, Kind, Tensor};

mod blocks;

use blocks::{Block, LastMask, Visibility};

/// What attention is told beside its tensors.
#[derive(Debug, Clone, Copy)]
pub struct AttentionOptions {
    /// Factor of the scores, usually `head_dim^-1/2`.
    pub scale: f64,
    /// Number of tokens that a query sees, itself included, at least 1; `None` is all that came before.
    pub sliding_window: Option<i64>,
}

/// Causal self-attention in which no sequence sees another.
///
/// `y_i = sum_j softmax_j(scale * q_i k_j) v_j` over the keys `j <= i` (and `i - j < sliding_window`) of the same sequence. Query head
/// `h` reads key head `h / (heads / kv_heads)`.
///
/// On the CPU no matrix of all queries by all keys exists, forward or backward. In f32, where `head_dim` is a multiple of 16, blocks of
/// queries meet the keys that one of them sees; so are tensors in 16 bits, in f32, with a result in 16 bits. Else libtorch's
/// attention goes through keys and queries in tiles; with a window, some hundred queries at a time are held against the keys that one
/// of them sees.
///
/// # Shapes
/// - `q`: `[total_tokens, heads, head_dim]`; `k`, `v`: `[total_tokens, kv_heads, head_dim]`
/// - returns `[total_tokens, heads, head_dim]`
///
/// # Errors
/// [`Error::Shape`] where the tensors do not fit each other or the layout; [`Error::Layout`] if a sequence has tokens in a cache
/// (see [`CachedAttention`](crate::CachedAttention)); [`Error::InvalidOption`] for a window below 1.
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
    check_window(NAME, options)?;
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
    check_window(NAME, options)?;
    let segments = Segments { layout: layout.clone(), options };
    let tables = [cos.f_detach()?, sin.f_detach()?];
    Ok(apply_one(RotaryAttention { segments, tables, kv_heads }, &[Some(qkv)])?)
}

pub(crate) fn check_window(function: &'static str, options: AttentionOptions) -> Result<()> {
    match options.sliding_window {
        Some(window) if window < 1 => Err(Error::InvalidOption {
            function,
            option: "sliding_window",
            found: window as f64,
            expected: "at least 1: a token sees itself",
        }),
        _ => Ok(()),
    }
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

/// The inverse of [`heads`].
fn from_heads(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_squeeze_dim(0)?.f_transpose(0, 1)?)
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

/// Rows `range` of `[tokens, heads, head_dim]`, a view.
fn rows_of(x: &Tensor, range: &Range<i64>) -> Result<Tensor> {
    Ok(x.f_narrow(0, range.start, range.end - range.start)?)
}

/// Attention of one sequence: `[tokens, heads, head_dim]`, and the log-sum-exps of its blocks.
fn attend_in_blocks([q, k, v]: [&Tensor; 3], options: AttentionOptions) -> Result<(Tensor, Vec<Tensor>)> {
    let mut mask = LastMask::default();
    let (mut outputs, mut log_sum_exps) = (Vec::new(), Vec::new());
    for block in Block::all(q.size()[0], options.sliding_window) {
        let visibility = block.visibility(options.sliding_window);
        let (output, log_sum_exp) = attend(
            &heads(&rows_of(q, &block.queries)?)?,
            &heads(&rows_of(k, &block.keys)?)?,
            &heads(&rows_of(v, &block.keys)?)?,
            visibility == Visibility::Causal,
            mask.of(visibility, q)?,
            options.scale,
        )?;
        outputs.push(from_heads(&output)?);
        log_sum_exps.extend(log_sum_exp);
    }
    Ok((joined(outputs)?, log_sum_exps))
}

/// The rows of all, without a copy if there is one.
fn joined(mut parts: Vec<Tensor>) -> Result<Tensor> {
    match (parts.pop(), parts.is_empty()) {
        (Some(only), true) => Ok(only),
        (last, _) => {
            parts.extend(last);
            Ok(Tensor::f_cat(&parts, 0)?)
        }
    }
}

/// Tensors of f32 or fewer bits on the CPU in f32, where our own kernel takes these heads; else `None`.
fn in_f32<const N: usize>(tensors: [&Tensor; N]) -> Result<Option<[Tensor; N]>> {
    if !tensors.iter().all(|tensor| tensor.size().last().is_some_and(|&size| cpu::attention::takes(size))) {
        return Ok(None);
    }
    let mut wide = tensors.map(Tensor::shallow_clone);
    for tensor in &mut wide {
        match (tensor.device(), tensor.kind()) {
            (Device::Cpu, Kind::Float) => {}
            (Device::Cpu, Kind::BFloat16 | Kind::Half) => *tensor = tensor.f_to_kind(Kind::Float)?,
            _ => return Ok(None),
        }
    }
    Ok(Some(wide))
}

/// Attention sequence by sequence.
struct Segments {
    layout: SequenceLayout,
    options: AttentionOptions,
}

impl Segments {
    /// The result, and the log-sum-exps that backward needs.
    fn forward(&self, [q, k, v]: [&Tensor; 3]) -> Result<(Tensor, Vec<Tensor>)> {
        if let Some([output, log_sum_exp]) = self.fused_forward([q, k, v])? {
            return Ok((output, vec![log_sum_exp]));
        }
        let (mut outputs, mut log_sum_exps) = (Vec::new(), Vec::new());
        for segment in self.layout.segments() {
            let of = |x: &Tensor| rows_of(x, &segment.rows);
            let (output, of_blocks) = attend_in_blocks([&of(q)?, &of(k)?, &of(v)?], self.options)?;
            outputs.push(output);
            log_sum_exps.extend(of_blocks);
        }
        if outputs.is_empty() {
            return Ok((q.f_empty_like()?, log_sum_exps));
        }
        Ok((joined(outputs)?, log_sum_exps))
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
        // One of all heads and tokens.
        if let [log_sum_exp] = log_sum_exps
            && log_sum_exp.dim() == 2
            && self.fused_backward([q, k, v], [grad, output, log_sum_exp], results)?
        {
            return Ok(());
        }
        let [grad_q, grad_k, grad_v] = results;
        let mut mask = LastMask::default();
        let mut log_sum_exps = log_sum_exps.iter();
        for segment in self.layout.segments() {
            let blocks = Block::all(segment.len(), self.options.sliding_window);
            let of = |x: &Tensor, range: &Range<i64>| {
                rows_of(x, &(segment.rows.start + range.start..segment.rows.start + range.end))
            };
            if blocks.len() > 1 {
                // Blocks share keys: their gradients add up.
                for grad in [grad_k, grad_v] {
                    let _ = of(grad, &(0..segment.len()))?.f_zero_()?;
                }
            }
            for block in &blocks {
                let visibility = block.visibility(self.options.sliding_window);
                let queries_of = |x| heads(&of(x, &block.queries)?);
                let keys_of = |x| heads(&of(x, &block.keys)?);
                let [of_q, of_k, of_v] = self.block_gradients(
                    &queries_of(grad)?,
                    [&queries_of(q)?, &keys_of(k)?, &keys_of(v)?],
                    &queries_of(output)?,
                    log_sum_exps.next(),
                    visibility == Visibility::Causal,
                    mask.of(visibility, q)?,
                )?;
                queries_of(grad_q)?.f_copy_(&of_q)?;
                for (sum, part) in [(grad_k, of_k), (grad_v, of_v)] {
                    match blocks.len() {
                        1 => keys_of(sum)?.f_copy_(&part)?,
                        _ => drop(keys_of(sum)?.f_add_(&part)?),
                    }
                }
            }
        }
        Ok(())
    }

    /// Our own kernel on the CPU, in f32 whatever the kind: the result, and the log-sum-exp of all heads and tokens.
    fn fused_forward(&self, qkv: [&Tensor; 3]) -> Result<Option<[Tensor; 2]>> {
        let Some([q, k, v]) = in_f32(qkv)? else { return Ok(None) };
        let found = cpu::attention::forward([&q, &k, &v], self.layout.segments(), self.options)?;
        let rounded = |[output, log_sum_exp]: [Tensor; 2]| -> Result<_> {
            Ok([output.f_to_kind(qkv[0].kind())?, log_sum_exp])
        };
        found.map(rounded).transpose()
    }

    /// Its gradients, written into `results`; of the result: its gradient, itself, and the log-sum-exp.
    fn fused_backward(
        &self,
        qkv: [&Tensor; 3],
        [grad, output, log_sum_exp]: [&Tensor; 3],
        results: &[Tensor; 3],
    ) -> Result<bool> {
        let (Some([q, k, v]), Some([grad, output])) = (in_f32(qkv)?, in_f32([grad, output])?) else {
            return Ok(false);
        };
        let (inputs, of_output) = ([&q, &k, &v], [&grad, &output, log_sum_exp]);
        let (segments, options) = (self.layout.segments(), self.options);
        if qkv[0].kind() == Kind::Float {
            return cpu::attention::backward(inputs, of_output, results, segments, options);
        }
        let wide = [q.f_empty_like()?, k.f_empty_like()?, v.f_empty_like()?];
        let is_done = cpu::attention::backward(inputs, of_output, &wide, segments, options)?;
        for (result, wide) in results.iter().zip(&wide).filter(|_| is_done) {
            result.shallow_clone().f_copy_(wide)?;
        }
        Ok(is_done)
    }

    /// Gradients of one block from the kept log-sum-exp (CPU), or by running its forward again under the graph (elsewhere).
    fn block_gradients(
        &self,
        grad: &Tensor,
        [q, k, v]: [&Tensor; 3],
        output: &Tensor,
        log_sum_exp: Option<&Tensor>,
        causal: bool,
        mask: Option<&Tensor>,
    ) -> Result<[Tensor; 3]> {
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

    /// Heads of queries and keys.
    fn rotated_heads(&self, qkv: &Tensor) -> i64 {
        qkv.size()[1] - self.kv_heads
    }
}

impl Function for RotaryAttention {
    fn forward(
        &mut self,
        inputs: &[Option<&Tensor>],
        context: &mut ForwardContext,
    ) -> std::result::Result<Vec<Tensor>, BoxedError> {
        let qkv = inputs[0].ok_or("qkv is required")?;
        let [cos, sin] = &self.tables;
        let rotated = rotate_first(qkv, self.rotated_heads(qkv), cos, sin, Sense::Forward)?;
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
        let mut result = rotated.f_empty_like()?;
        self.segments.backward(grad, [&q, &k, &v], output, log_sum_exps, &self.parts(&result)?)?;
        let ([cos, sin], heads) = (&self.tables, self.rotated_heads(&result));
        rotate_first_in_place(&mut result, heads, cos, sin, Sense::Backward)?;
        Ok(vec![Some(result)])
    }
}
