//! Primitives, as methods. Two tensors stretch along dimensions of 1, as NumPy's do; axes count from the end where
//! negative.

use super::op::{Binary, Compare, Op, Reduce, Unary};
use super::{Kind, Tensor, TensorError, apply, apply_one, shape};

type Result<T> = std::result::Result<T, TensorError>;

macro_rules! unary {
    ($($(#[doc = $doc:literal])* $name:ident $op:ident;)*) => {
        /// Element by element.
        impl Tensor {
            $($(#[doc = $doc])*
            ///
            /// # Errors
            ///
            /// When candle fails.
            pub fn $name(&self) -> Result<Self> {
                apply_one(Op::Unary(Unary::$op), &[self])
            })*
        }
    };
}

unary! {
    /// `-x`
    neg Neg;
    /// `|x|`
    abs Abs;
    /// `e^x`
    exp Exp;
    /// The natural logarithm.
    log Log;
    /// The square root.
    sqrt Sqrt;
    /// `1 / x`
    recip Reciprocal;
    /// The sine.
    sin Sin;
    /// The cosine.
    cos Cos;
    /// The hyperbolic tangent.
    tanh Tanh;
    /// The error function.
    erf Erf;
    /// `1 / (1 + e^-x)`
    sigmoid Sigmoid;
    /// Down to a whole number.
    floor Floor;
    /// Up to a whole number.
    ceil Ceil;
    /// To the nearest whole number, halves to even.
    round Round;
    /// -1, 0 or 1.
    sign Sign;
}

macro_rules! binary {
    ($($(#[doc = $doc:literal])* $name:ident $op:expr;)*) => {
        /// Two tensors of one kind, element by element.
        impl Tensor {
            $($(#[doc = $doc])*
            ///
            /// # Errors
            ///
            /// When the shapes do not stretch to each other.
            pub fn $name(&self, other: &Self) -> Result<Self> {
                apply_one($op, &[self, other])
            })*
        }
    };
}

binary! {
    /// The sum.
    add Op::Binary(Binary::Add);
    /// The difference.
    sub Op::Binary(Binary::Sub);
    /// The product.
    mul Op::Binary(Binary::Mul);
    /// The quotient; of whole numbers cut towards zero.
    div Op::Binary(Binary::Div);
    /// The power; the base must not be negative.
    pow Op::Binary(Binary::Pow);
    /// The larger.
    max Op::Binary(Binary::Max);
    /// The smaller.
    min Op::Binary(Binary::Min);
    /// 1 where equal, else 0.
    equal Op::Compare(Compare::Equal);
    /// 1 where less, else 0.
    less Op::Compare(Compare::Less);
    /// 1 where less or equal, else 0.
    less_equal Op::Compare(Compare::LessEqual);
}

/// Numbers.
impl Tensor {
    /// `x * factor + offset`
    ///
    /// # Errors
    ///
    /// When candle fails.
    pub fn affine(&self, factor: f32, offset: f32) -> Result<Self> {
        apply_one(Op::Affine { factor, offset }, &[self])
    }

    /// `x * factor`
    ///
    /// # Errors
    ///
    /// When candle fails.
    pub fn scale(&self, factor: f32) -> Result<Self> {
        self.affine(factor, 0.0)
    }

    /// `x + offset`
    ///
    /// # Errors
    ///
    /// When candle fails.
    pub fn shift(&self, offset: f32) -> Result<Self> {
        self.affine(1.0, offset)
    }

    /// `x^2`
    ///
    /// # Errors
    ///
    /// When candle fails.
    pub fn square(&self) -> Result<Self> {
        self.mul(self)
    }

    /// One number, of this tensor's kind.
    ///
    /// # Errors
    ///
    /// When candle fails.
    pub fn like(&self, value: f32) -> Result<Self> {
        match self.kind() {
            Kind::Float => Self::new(&self.engine, vec![value], &[]),
            Kind::Whole => Self::whole(&self.engine, vec![value as i64], &[]),
        }
    }

    /// Kept within bounds.
    ///
    /// # Errors
    ///
    /// When candle fails.
    pub fn clamp(&self, low: f32, high: f32) -> Result<Self> {
        self.max(&self.like(low)?)?.min(&self.like(high)?)
    }

    /// To whole numbers, cut towards zero.
    ///
    /// # Errors
    ///
    /// When candle fails.
    pub fn to_kind(&self, kind: Kind) -> Result<Self> {
        if self.kind() == kind { Ok(self.clone()) } else { apply_one(Op::Cast(kind), &[self]) }
    }

    /// `a` where this is not 0, else `b`.
    ///
    /// # Errors
    ///
    /// When the shapes do not stretch to each other.
    pub fn select(&self, a: &Self, b: &Self) -> Result<Self> {
        apply_one(Op::Select, &[self, a, b])
    }

    /// `[.., m, k] [.., k, n]` to `[.., m, n]`.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn matmul(&self, other: &Self) -> Result<Self> {
        apply_one(Op::MatMul, &[self, other])
    }
}

/// Shapes.
impl Tensor {
    /// The same elements in another shape.
    ///
    /// # Errors
    ///
    /// When the number of elements differs.
    pub fn reshape(&self, dims: &[usize]) -> Result<Self> {
        if self.dims() == dims { Ok(self.clone()) } else { apply_one(Op::Reshape(dims.to_vec()), &[self]) }
    }

    /// Dimensions in another order.
    ///
    /// # Errors
    ///
    /// When it is no order of all dimensions.
    pub fn permute(&self, order: &[usize]) -> Result<Self> {
        apply_one(Op::Permute(order.to_vec()), &[self])
    }

    /// Two dimensions swapped.
    ///
    /// # Errors
    ///
    /// When it has not these dimensions.
    pub fn transpose(&self, a: isize, b: isize) -> Result<Self> {
        let (a, b) = (self.axis("transpose", a)?, self.axis("transpose", b)?);
        let mut order: Vec<usize> = (0..self.dims().len()).collect();
        order.swap(a, b);
        self.permute(&order)
    }

    /// A dimension of 1 put in before `axis`.
    ///
    /// # Errors
    ///
    /// When there is no such place.
    pub fn unsqueeze(&self, axis: isize) -> Result<Self> {
        let rank = self.dims().len() as isize + 1;
        let at = if axis < 0 { axis + rank } else { axis };
        let at = usize::try_from(at).ok().filter(|&at| at < rank as usize);
        let at = at.ok_or_else(|| shape("unsqueeze", format!("a place {axis}"), self.dims()))?;
        let mut dims = self.dims().to_vec();
        dims.insert(at, 1);
        self.reshape(&dims)
    }

    /// A dimension of 1 taken out.
    ///
    /// # Errors
    ///
    /// When it is not 1.
    pub fn squeeze(&self, axis: isize) -> Result<Self> {
        let axis = self.axis("squeeze", axis)?;
        let mut dims = self.dims().to_vec();
        if dims.remove(axis) == 1 {
            self.reshape(&dims)
        } else {
            Err(shape("squeeze", "a dimension of 1", self.dims()))
        }
    }

    /// Dimensions from `first` to `last`, both counted, as one.
    ///
    /// # Errors
    ///
    /// When it has not these dimensions.
    pub fn flatten(&self, first: isize, last: isize) -> Result<Self> {
        let (first, last) = (self.axis("flatten", first)?, self.axis("flatten", last)?);
        if last < first {
            return Err(shape("flatten", format!("dimensions from {first} to {last}"), self.dims()));
        }
        let dims = self.dims();
        let whole = dims[first..=last].iter().product();
        self.reshape(&[&dims[..first], &[whole], &dims[last + 1..]].concat())
    }

    /// Stretched to a shape.
    ///
    /// # Errors
    ///
    /// When it does not stretch to it.
    pub fn broadcast(&self, dims: &[usize]) -> Result<Self> {
        if self.dims() == dims { Ok(self.clone()) } else { apply_one(Op::Broadcast(dims.to_vec()), &[self]) }
    }

    /// Some places along a dimension.
    ///
    /// # Errors
    ///
    /// When they are not there.
    pub fn narrow(&self, axis: isize, start: usize, length: usize) -> Result<Self> {
        let axis = self.axis("narrow", axis)?;
        if start == 0 && length == self.dims()[axis] {
            return Ok(self.clone());
        }
        apply_one(Op::Slice { axis, start, length, step: 1 }, &[self])
    }

    /// Every `step`-th place along a dimension, from `start` on.
    ///
    /// # Errors
    ///
    /// When there is no such dimension.
    pub fn every(&self, axis: isize, start: usize, step: usize) -> Result<Self> {
        let axis = self.axis("every", axis)?;
        let length = self.dims()[axis].saturating_sub(start).div_ceil(step.max(1));
        apply_one(Op::Slice { axis, start, length, step }, &[self])
    }

    /// One place along a dimension, which goes.
    ///
    /// # Errors
    ///
    /// When it is not there.
    pub fn at(&self, axis: isize, place: usize) -> Result<Self> {
        self.narrow(axis, place, 1)?.squeeze(axis)
    }

    /// In pieces of these lengths along a dimension.
    ///
    /// # Errors
    ///
    /// When the lengths do not add up.
    pub fn split(&self, axis: isize, lengths: &[usize]) -> Result<Vec<Self>> {
        if self.dim(axis)? != lengths.iter().sum::<usize>() {
            return Err(shape("split", format!("pieces of {lengths:?}"), self.dims()));
        }
        let mut start = 0;
        let piece = |&length: &usize| {
            start += length;
            self.narrow(axis, start - length, length)
        };
        lengths.iter().map(piece).collect()
    }

    /// In `N` equal pieces along a dimension.
    ///
    /// # Errors
    ///
    /// When the dimension is no multiple of `N`.
    pub fn chunks<const N: usize>(&self, axis: isize) -> Result<[Self; N]> {
        let pieces = self.split(axis, &[self.dim(axis)? / N; N])?;
        pieces.try_into().map_err(|_| shape("chunks", format!("{N} pieces"), self.dims()))
    }

    /// One after the other along a dimension.
    ///
    /// # Errors
    ///
    /// When there are none, or they differ in another dimension.
    pub fn concat(tensors: &[Self], axis: isize) -> Result<Self> {
        let [first, rest @ ..] = tensors else { return Err(shape("concat", "at least one tensor", &[])) };
        if rest.is_empty() {
            return Ok(first.clone());
        }
        let axis = first.axis("concat", axis)?;
        apply_one(Op::Concat { axis }, &tensors.iter().collect::<Vec<_>>())
    }

    /// Side by side along a new dimension.
    ///
    /// # Errors
    ///
    /// When there are none, or their shapes differ.
    pub fn stack(tensors: &[Self], axis: isize) -> Result<Self> {
        let tensors = tensors.iter().map(|tensor| tensor.unsqueeze(axis)).collect::<Result<Vec<_>>>()?;
        Self::concat(&tensors, axis)
    }

    /// A value before and after along a dimension.
    ///
    /// # Errors
    ///
    /// When there is no such dimension.
    pub fn pad(&self, axis: isize, before: usize, after: usize, value: f32) -> Result<Self> {
        let axis = self.axis("pad", axis)?;
        if before + after == 0 {
            return Ok(self.clone());
        }
        apply_one(Op::Pad { axis, before, after, value }, &[self])
    }

    /// The slices at some places of a dimension, which is replaced by the dimensions of `places`.
    ///
    /// # Errors
    ///
    /// When a place is not there.
    pub fn gather(&self, axis: isize, places: &Self) -> Result<Self> {
        let axis = self.axis("gather", axis)?;
        apply_one(Op::Gather { axis }, &[self, places])
    }

    /// The same, at places that are known.
    ///
    /// # Errors
    ///
    /// When a place is not there.
    pub fn pick(&self, axis: isize, places: &[usize]) -> Result<Self> {
        let places = places.iter().map(|&place| place as i64).collect::<Vec<_>>();
        let dims = [places.len()];
        self.gather(axis, &Self::whole(&self.engine, places, &dims)?)
    }

    /// In the opposite order along a dimension.
    ///
    /// # Errors
    ///
    /// When there is no such dimension.
    pub fn reverse(&self, axis: isize) -> Result<Self> {
        self.pick(axis, &(0..self.dim(axis)?).rev().collect::<Vec<_>>())
    }

    /// Of each line along a dimension the elements at its own places.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit, or a place is not there.
    pub fn take_along(&self, axis: isize, places: &Self) -> Result<Self> {
        let axis = self.axis("take_along", axis)?;
        apply_one(Op::TakeAlong { axis }, &[self, places])
    }
}

/// Several elements to one.
impl Tensor {
    fn reduce(&self, reduce: Reduce, axes: &[isize]) -> Result<Self> {
        let axes = axes.iter().map(|&axis| self.axis("reduce", axis)).collect::<Result<_>>()?;
        apply_one(Op::Reduce { reduce, axes }, &[self])
    }

    /// The sum along dimensions, which become 1.
    ///
    /// # Errors
    ///
    /// When it has not these dimensions.
    pub fn sum(&self, axes: &[isize]) -> Result<Self> {
        self.reduce(Reduce::Sum, axes)
    }

    /// The mean along dimensions, which become 1.
    ///
    /// # Errors
    ///
    /// When it has not these dimensions.
    pub fn mean(&self, axes: &[isize]) -> Result<Self> {
        self.reduce(Reduce::Mean, axes)
    }

    /// The largest along dimensions, which become 1.
    ///
    /// # Errors
    ///
    /// When it has not these dimensions.
    pub fn largest(&self, axes: &[isize]) -> Result<Self> {
        self.reduce(Reduce::Max, axes)
    }

    /// The smallest along dimensions, which become 1.
    ///
    /// # Errors
    ///
    /// When it has not these dimensions.
    pub fn smallest(&self, axes: &[isize]) -> Result<Self> {
        self.reduce(Reduce::Min, axes)
    }

    /// Sums of all places up to each, along a dimension.
    ///
    /// # Errors
    ///
    /// When there is no such dimension.
    pub fn cumulative_sum(&self, axis: isize) -> Result<Self> {
        let axis = self.axis("cumulative_sum", axis)?;
        apply_one(Op::CumulativeSum { axis }, &[self])
    }

    /// The largest along the last dimension, falling, the first of equals first: values and places.
    ///
    /// # Errors
    ///
    /// When there are fewer than `count`.
    pub fn top_k(&self, count: usize) -> Result<(Self, Self)> {
        let outs = apply(Op::TopK(count), &[self])?;
        let [values, places] =
            <[Self; 2]>::try_from(outs).map_err(|outs| shape("top_k", "two results", &[outs.len()]))?;
        Ok((values, places))
    }

    /// The place of the largest along the last dimension, which goes.
    ///
    /// # Errors
    ///
    /// When it has no dimension.
    pub fn argmax(&self) -> Result<Self> {
        self.top_k(1)?.1.squeeze(-1)
    }
}
