//! Frozen linear layers with trainable low-rank updates.

use crate::{
    cpu::{Matrix, NarrowProducts, narrow_products, products_beside},
    dropout::Dropout,
    error::{Error, Result, check_shape},
    filled_rows::{filled_up, first_rows},
    frozen::{FrozenWeight, Update, flatten_rows, frozen_linear, in_shape},
    kind::in_kind,
    matmul::matmul,
    prologue::{OwnedPrologue, Prologue},
    random::Mode,
};
use ferrotune_autograd::{BackwardContext, BoxedError, ForwardContext, Function, apply_one};
use tch::{Kind, Tensor};

/// The low-rank update of one layer.
#[derive(Debug, Clone, Copy)]
pub struct LowRank<'a> {
    /// `A`, `[rank, in_features]`.
    pub a: &'a Tensor,
    /// `B`, `[out_features, rank]`.
    pub b: &'a Tensor,
    /// Factor of the update: `alpha / rank`, or `alpha / sqrt(rank)`.
    pub scaling: f64,
    /// Probability with which an element of the update's input is zeroed in training; the rest is scaled by `1 / (1 - p)`.
    pub dropout: f64,
    /// Tells this layer's dropout from that of every other layer.
    pub layer: u64,
}

/// One output of a group: its share of the stacked rows, and its update if it has one.
#[derive(Debug, Clone, Copy)]
pub struct GroupMember<'a> {
    /// Number of rows of the stacked weight that belong to it.
    pub out_features: i64,
    /// Its update; without one it is the frozen layer.
    pub update: Option<LowRank<'a>>,
}

/// A frozen linear layer plus a trainable low-rank update.
///
/// `y = x W^T + bias + scaling * dropout(x) A^T B^T`; only `x`, `A` and `B` receive gradients.
///
/// # Shapes
/// - `x`: `[..., in_features]`; `bias`: `[out_features]`
/// - returns `[..., out_features]`
///
/// # Errors
/// [`Error::Shape`] names both shapes where two things do not fit; [`Error::Dropout`] for a senseless probability.
///
/// ```
/// use ferrotune_kernels::{FrozenWeight, LowRank, Mode, lora_linear};
/// use tch::{Device, Kind, Tensor};
/// let options = (Kind::Float, Device::Cpu);
/// let weight = FrozenWeight::new(&Tensor::ones([4, 3], options))?;
/// let (a, b) = (Tensor::ones([2, 3], options), Tensor::ones([4, 2], options).set_requires_grad(true));
/// let update = LowRank { a: &a, b: &b, scaling: 0.5, dropout: 0.0, layer: 0 };
/// let y = lora_linear(&Tensor::ones([1, 3], options), &weight, None, Some(update), Mode::Eval)?;
/// assert_eq!(Vec::<f32>::try_from(y.reshape([-1]))?, [6.0; 4]); // 3 + 0.5 * 3 * 2
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # References
/// Hu et al. 2021, arXiv:2106.09685, section 4.1.
pub fn lora_linear(
    x: &Tensor,
    weight: &FrozenWeight,
    bias: Option<&Tensor>,
    update: Option<LowRank>,
    mode: Mode,
) -> Result<Tensor> {
    let members = [GroupMember { out_features: weight.out_features(), update }];
    grouped_lora_linear(x, Prologue::None, weight, bias, &members, mode)
}

/// Several linear layers on the same input, their frozen weights stacked into one product, each with its own update or none.
///
/// Member `i` owns the columns `y_i = p W_i^T + bias_i + scaling_i * dropout_i(p) A_i^T B_i^T` of the result, where `p` is what
/// `prologue` makes of `x`.
///
/// The prologue is computed in the kind of `x`, the product with the weight in the weight's, and the update in that of `A` and `B`; the
/// result has the weight's kind. Mixed precision is `x` in f32 with the others in 16 bits, which the caller casts.
///
/// # Shapes
/// - `x`: `[..., in_features]`, or `[tokens, 2 in_features]` with [`Prologue::SwiGlu`]; `weight`: `[sum of out_features, in_features]`;
///   `bias`: `[sum of out_features]`
/// - returns `[..., sum of out_features]`
///
/// # Errors
/// As [`lora_linear`].
pub fn grouped_lora_linear(
    x: &Tensor,
    prologue: Prologue,
    weight: &FrozenWeight,
    bias: Option<&Tensor>,
    members: &[GroupMember],
    mode: Mode,
) -> Result<Tensor> {
    const NAME: &str = "lora_linear";
    let columns = prologue.input_columns(weight.in_features());
    let (flat, shape) = flatten_rows(NAME, x, columns, weight.out_features())?;
    let total: i64 = members.iter().map(|member| member.out_features).sum();
    if total != weight.out_features() {
        return Err(Error::Shape {
            function: NAME,
            what: "the stacked weight".to_owned(),
            found: vec![weight.out_features(), weight.in_features()],
            expected: format!("{total} rows, the sum of the members' out_features"),
        });
    }
    if let Some(bias) = bias {
        check_shape(NAME, "bias", bias, &[total])?;
    }
    let mut places = Vec::new();
    let mut inputs = vec![Some(&flat)];
    let mut column = 0;
    for member in members {
        if let Some(update) = member.update {
            check_shape(NAME, "A", update.a, &[-1, weight.in_features()])?;
            let rank = update.a.size()[0];
            check_shape(NAME, "B", update.b, &[member.out_features, rank])?;
            if !(0.0..1.0).contains(&update.dropout) {
                return Err(Error::Dropout(update.dropout));
            }
            let dropout = match mode {
                Mode::Train(key) if update.dropout > 0.0 => {
                    Some(Dropout::new(key.fold(update.layer), update.dropout))
                }
                _ => None,
            };
            places.push(Place {
                column,
                out_features: member.out_features,
                rank,
                scaling: update.scaling,
                dropout,
            });
            inputs.extend([Some(update.a), Some(update.b)]);
        }
        column += member.out_features;
    }
    if places.is_empty() {
        return frozen_linear(&prologue.apply(x)?.f_to_kind(weight.kind())?, weight, bias);
    }
    let prologue = prologue.to_owned(NAME, weight.in_features())?;
    let bias = bias.map(|bias| bias.f_detach()).transpose()?;
    let y = apply_one(GroupedLora { prologue, weight: weight.shallow_clone(), bias, places }, &inputs)?;
    in_shape(first_rows(y, flat.size()[0])?, &shape)
}

/// Where one update acts.
#[derive(Debug)]
struct Place {
    column: i64,
    out_features: i64,
    rank: i64,
    scaling: f64,
    dropout: Option<Dropout>,
}

struct GroupedLora {
    prologue: OwnedPrologue,
    weight: FrozenWeight,
    bias: Option<Tensor>,
    places: Vec<Place>,
}

impl GroupedLora {
    /// Whether all updates read the same input, so that their `A`s can be stacked into one product.
    fn shares_input(&self) -> bool {
        self.places.len() > 1 && self.places.iter().all(|place| place.dropout.is_none())
    }

    /// `dropout_i(x)` in the kind of the adapters.
    fn update_input(place: &Place, x: &Tensor, kind: Kind) -> Result<Tensor> {
        let x = in_kind(x, kind)?;
        Ok(match &place.dropout {
            Some(dropout) => dropout.apply(&x)?,
            None => x,
        })
    }

    /// `scaling_i * dropout_i(x) A_i^T` of every update, `[tokens, rank_i]` each.
    fn project(&self, x: &Tensor, adapters: &[&Tensor]) -> Result<Vec<Tensor>> {
        if let Some(projected) = self.project_at_once(x, adapters)? {
            return Ok(projected);
        }
        let kind = adapters[0].kind();
        if self.shares_input() {
            let a: Vec<&Tensor> = adapters.iter().copied().step_by(2).collect();
            let projected = matmul(&in_kind(x, kind)?, &Tensor::f_cat(&a, 0)?.f_tr()?)?;
            return self
                .split(projected)?
                .into_iter()
                .zip(&self.places)
                .map(|(mut part, place)| Ok(part.f_mul_scalar_(place.scaling)?))
                .collect();
        }
        let mut projected = Vec::with_capacity(self.places.len());
        for (place, pair) in self.places.iter().zip(adapters.chunks(2)) {
            let input = Self::update_input(place, x, kind)?;
            projected.push(matmul(&input, &pair[0].f_tr()?)?.f_mul_scalar_(place.scaling)?);
        }
        Ok(projected)
    }

    /// The same where no update has dropout, in one pass over `x`; `None` where this crate's loops do not suit the tensors.
    fn project_at_once(&self, x: &Tensor, adapters: &[&Tensor]) -> Result<Option<Vec<Tensor>>> {
        if self.places.iter().any(|place| place.dropout.is_some()) {
            return Ok(None);
        }
        let pairs = self.places.iter().zip(adapters.chunks(2));
        let factors = pairs.map(|(place, pair)| Some((Matrix::of(pair[0])?.turned(), place.scaling as f32)));
        let (Some(x), Some(factors)) = (Matrix::of(x), factors.collect::<Option<Vec<_>>>()) else {
            return Ok(None);
        };
        products_beside(x, &factors)?.map(|projected| self.split(projected)).transpose()
    }

    /// The columns of each update.
    fn split(&self, projected: Tensor) -> Result<Vec<Tensor>> {
        if self.places.len() == 1 {
            return Ok(vec![projected]);
        }
        let ranks: Vec<i64> = self.places.iter().map(|place| place.rank).collect();
        Ok(projected.f_split_with_sizes(ranks.as_slice(), 1)?)
    }

    /// The gradient of what the products read: through the frozen weight, and through each update.
    fn input_gradient(
        &self,
        grad: &Tensor,
        grad_projected: &[Tensor],
        adapters: &[&Tensor],
    ) -> Result<Tensor> {
        let plain: Vec<Update> = (self.places.iter().zip(grad_projected).zip(adapters.chunks(2)))
            .filter(|((place, _), _)| place.dropout.is_none())
            .map(|((_, projected), pair)| Update { projected, factor: pair[0], first_column: 0 })
            .collect();
        let mut grad_x = self.weight.input_gradient_with(grad, &plain)?;
        for ((place, projected), pair) in self.places.iter().zip(grad_projected).zip(adapters.chunks(2)) {
            if let Some(dropout) = &place.dropout {
                let masked = dropout.apply(&matmul(projected, pair[0])?)?;
                let _ = grad_x.f_add_(&masked.f_to_kind(grad_x.kind())?)?;
            }
        }
        Ok(grad_x)
    }
}

impl Function for GroupedLora {
    fn forward(
        &mut self,
        inputs: &[Option<&Tensor>],
        context: &mut ForwardContext,
    ) -> std::result::Result<Vec<Tensor>, BoxedError> {
        let inputs: Vec<&Tensor> = inputs.iter().copied().flatten().collect();
        let (x, adapters) = (inputs[0], &inputs[1..]);
        // Rows that are filled up stay: a view made here could not be changed in place by who gets it.
        let p = in_kind(&self.prologue.forward(x)?, self.weight.kind())?;
        let p = filled_up(&p)?;
        let projected = self.project(&p, adapters)?;
        let updates: Vec<Update> = (self.places.iter().zip(&projected).zip(adapters.chunks(2)))
            .map(|((place, projected), pair)| Update {
                projected,
                factor: pair[1],
                first_column: place.column,
            })
            .collect();
        let mut y = self.weight.forward_product_with(&p, &updates)?;
        if let Some(bias) = self.bias.take() {
            y = y.f_add_(&bias)?;
        }
        context.save(&inputs);
        // `x A^T` is small beside x: kept, it costs less than the product that would compute it again.
        context.save(&projected.iter().collect::<Vec<_>>());
        Ok(vec![y])
    }

    fn backward(
        &self,
        grads: &[Option<Tensor>],
        context: &BackwardContext,
    ) -> std::result::Result<Vec<Option<Tensor>>, BoxedError> {
        let Some(grad) = &grads[0] else { return Ok((0..=2 * self.places.len()).map(|_| None).collect()) };
        let saved: Vec<&Tensor> = context.saved().iter().collect();
        let (x, rest) = (saved[0], &saved[1..]);
        let (adapters, projected) = rest.split_at(2 * self.places.len());
        let kind = adapters[0].kind();
        // What a step before the product makes of x is computed again with the gradient of it, later.
        let is_at_hand = matches!(self.prologue, OwnedPrologue::None) && x.kind() == self.weight.kind();
        let input = is_at_hand.then_some(x);
        let mut through = Vec::with_capacity(self.places.len());
        let mut grads_of_factors = Vec::with_capacity(self.places.len());
        for (index, (place, pair)) in self.places.iter().zip(adapters.chunks(2)).enumerate() {
            let grad_y = in_kind(&columns_of(grad, place)?, kind)?;
            let input = input.filter(|_| place.dropout.is_none() && context.needs_input_grad(1 + 2 * index));
            let grads = output_gradients(&grad_y, pair[1], place.scaling, projected[index], input)?;
            through.push(grads.product);
            grads_of_factors.push((grads.of_input, grads.of_other));
        }
        let (grad_x, p) = match context.needs_input_grad(0) {
            true => {
                let grad_p = self.input_gradient(grad, &through, adapters)?;
                let grad_p = in_kind(&first_rows(grad_p, x.size()[0])?, x.kind())?;
                let [grad_x, p] = self.prologue.backward_again(grad_p, x)?;
                (Some(grad_x), p)
            }
            false => (None, self.prologue.forward(x)?),
        };
        let p = filled_up(&in_kind(&p, self.weight.kind())?)?;
        let mut results = Vec::with_capacity(1 + adapters.len());
        results.push(grad_x);
        for ((place, through), (grad_a, grad_b)) in self.places.iter().zip(&through).zip(grads_of_factors) {
            let grad_a = match grad_a {
                None if context.needs_input_grad(results.len()) => {
                    Some(matmul(&through.f_tr()?, &Self::update_input(place, &p, kind)?)?)
                }
                known => known,
            };
            results.extend([grad_a, Some(grad_b)]);
        }
        Ok(results)
    }
}

/// The columns on which an update acts, without asking libtorch for a view of all.
fn columns_of(grad: &Tensor, place: &Place) -> Result<Tensor> {
    match grad.size()[1] == place.out_features {
        true => Ok(grad.shallow_clone()),
        false => Ok(grad.f_narrow(1, place.column, place.out_features)?),
    }
}

/// What backward makes of the gradient of an update's output: `d loss / d (dropout(x) A^T) = scaling * grad_y B`, `[tokens, rank]`,
/// `d loss / d B = grad_y^T projected`, `[out_features, rank]`, and where `A`'s input is at hand perhaps also
/// `d loss / d A`, `[rank, in_features]`.
fn output_gradients(
    grad_y: &Tensor,
    b: &Tensor,
    scaling: f64,
    projected: &Tensor,
    input: Option<&Tensor>,
) -> Result<NarrowProducts> {
    if let Some(products) = narrow_products(grad_y, b, scaling, projected, input)? {
        return Ok(products);
    }
    let product = matmul(grad_y, b)?.f_mul_scalar_(scaling)?;
    let of_other = matmul(&grad_y.f_tr()?, projected)?;
    Ok(NarrowProducts { product, of_other, of_input: None })
}
