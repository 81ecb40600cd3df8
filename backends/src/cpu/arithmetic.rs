//! Sums, differences, products and quotients of many numbers.

use super::Cpu;

/// Numbers that one part of the work makes: they stay in the nearest caches.
const PART: usize = 16 << 10;

/// What two numbers come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// `a + b`
    Add,
    /// `a - b`
    Sub,
    /// `a * b`
    Mul,
    /// `a / b`
    Div,
}

/// Which second number goes with which first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// As many as there are first ones, each with its own.
    Each,
    /// A row of so many, again for every row of first ones.
    Row(usize),
    /// One for each row of so many first ones.
    Column(usize),
}

impl Cpu {
    /// `out[i] = a[i] op b[..]`.
    pub fn arithmetic(&self, op: Arithmetic, pairing: Pairing, a: &[f32], b: &[f32], out: &mut [f32]) {
        let seconds = match pairing {
            Pairing::Each => a.len(),
            Pairing::Row(width) => width,
            Pairing::Column(width) => a.len().checked_div(width).unwrap_or(0),
        };
        assert!(a.len() == out.len() && b.len() == seconds, "the shapes of two operands");
        match op {
            Arithmetic::Add => self.paired(pairing, a, b, out, |a, b| a + b),
            Arithmetic::Sub => self.paired(pairing, a, b, out, |a, b| a - b),
            Arithmetic::Mul => self.paired(pairing, a, b, out, |a, b| a * b),
            Arithmetic::Div => self.paired(pairing, a, b, out, |a, b| a / b),
        }
    }

    fn paired(
        &self,
        pairing: Pairing,
        a: &[f32],
        b: &[f32],
        out: &mut [f32],
        op: impl Fn(f32, f32) -> f32 + Copy + Sync,
    ) {
        let each = |out: &mut [f32], a: &[f32], b: &[f32]| {
            out.iter_mut().zip(a).zip(b).for_each(|((out, &a), &b)| *out = op(a, b));
        };
        self.chunks(out, PART, &|part, out| {
            let from = part * PART;
            let a = &a[from..][..out.len()];
            let (Pairing::Row(width) | Pairing::Column(width)) = pairing else {
                return each(out, a, &b[from..][..a.len()]);
            };
            let mut done = 0;
            while done < out.len() {
                let (row, column) = ((from + done) / width, (from + done) % width);
                let upto = out.len().min(done + width - column);
                let (out, a) = (&mut out[done..upto], &a[done..upto]);
                match pairing {
                    Pairing::Row(_) => each(out, a, &b[column..][..a.len()]),
                    _ => out.iter_mut().zip(a).for_each(|(out, &a)| *out = op(a, b[row])),
                }
                done = upto;
            }
        });
    }
}
