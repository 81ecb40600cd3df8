//! How the elements of a tensor are stored, and how much room they take.
//!
//! All formats that occur in files are named here, so that a file can be stored and cut at its tensors even where no
//! kernel can compute with them.

use std::fmt;

macro_rules! dtypes {
    ($($(#[doc = $doc:literal])* $name:ident $text:literal $elements:literal $bytes:literal $gguf:expr;)*) => {
        /// How elements are stored.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[expect(non_camel_case_types, reason = "the names are those of the file formats")]
        pub enum Dtype { $($(#[doc = $doc])* $name,)* }

        impl Dtype {
            const ALL: &[Dtype] = &[$(Dtype::$name,)*];

            /// Its name in the file formats.
            pub fn name(self) -> &'static str {
                match self { $(Dtype::$name => $text,)* }
            }

            /// Elements and bytes of the smallest piece that stands alone.
            pub fn block(self) -> (usize, usize) {
                match self { $(Dtype::$name => ($elements, $bytes),)* }
            }

            /// Its number in GGUF files.
            fn gguf(self) -> Option<u32> {
                match self { $(Dtype::$name => $gguf,)* }
            }
        }
    };
}

dtypes! {
    /// 32-bit floats.
    F32 "F32" 1 4 Some(0);
    /// IEEE 16-bit floats.
    F16 "F16" 1 2 Some(1);
    /// The upper halves of 32-bit floats.
    BF16 "BF16" 1 2 Some(30);
    /// 64-bit floats.
    F64 "F64" 1 8 Some(28);
    /// 8-bit floats with 4 exponent bits.
    F8_E4M3 "F8_E4M3" 1 1 None;
    /// 8-bit floats with 5 exponent bits.
    F8_E5M2 "F8_E5M2" 1 1 None;
    /// One byte, 0 or 1.
    Bool "BOOL" 1 1 None;
    /// Unsigned bytes.
    U8 "U8" 1 1 None;
    /// Unsigned 16-bit integers.
    U16 "U16" 1 2 None;
    /// Unsigned 32-bit integers.
    U32 "U32" 1 4 None;
    /// Unsigned 64-bit integers.
    U64 "U64" 1 8 None;
    /// Signed bytes.
    I8 "I8" 1 1 Some(24);
    /// Signed 16-bit integers.
    I16 "I16" 1 2 Some(25);
    /// Signed 32-bit integers.
    I32 "I32" 1 4 Some(26);
    /// Signed 64-bit integers.
    I64 "I64" 1 8 Some(27);
    /// 4 bits, one scale for 32.
    Q4_0 "Q4_0" 32 18 Some(2);
    /// 4 bits, one scale and minimum for 32.
    Q4_1 "Q4_1" 32 20 Some(3);
    /// 5 bits, one scale for 32.
    Q5_0 "Q5_0" 32 22 Some(6);
    /// 5 bits, one scale and minimum for 32.
    Q5_1 "Q5_1" 32 24 Some(7);
    /// 8 bits, one scale for 32.
    Q8_0 "Q8_0" 32 34 Some(8);
    /// 8 bits, one scale and sum for 32.
    Q8_1 "Q8_1" 32 36 Some(9);
    /// 2 bits in blocks of 256.
    Q2_K "Q2_K" 256 84 Some(10);
    /// 3 bits in blocks of 256.
    Q3_K "Q3_K" 256 110 Some(11);
    /// 4 bits in blocks of 256.
    Q4_K "Q4_K" 256 144 Some(12);
    /// 5 bits in blocks of 256.
    Q5_K "Q5_K" 256 176 Some(13);
    /// 6 bits in blocks of 256.
    Q6_K "Q6_K" 256 210 Some(14);
    /// 8 bits in blocks of 256.
    Q8_K "Q8_K" 256 292 Some(15);
    /// 2 bits by table.
    IQ2_XXS "IQ2_XXS" 256 66 Some(16);
    /// 2 bits by table.
    IQ2_XS "IQ2_XS" 256 74 Some(17);
    /// 3 bits by table.
    IQ3_XXS "IQ3_XXS" 256 98 Some(18);
    /// 1 bit by table.
    IQ1_S "IQ1_S" 256 50 Some(19);
    /// 4 bits by table, 32 at a time.
    IQ4_NL "IQ4_NL" 32 18 Some(20);
    /// 3 bits by table.
    IQ3_S "IQ3_S" 256 110 Some(21);
    /// 2 bits by table.
    IQ2_S "IQ2_S" 256 82 Some(22);
    /// 4 bits by table.
    IQ4_XS "IQ4_XS" 256 136 Some(23);
    /// 1 bit by table.
    IQ1_M "IQ1_M" 256 56 Some(29);
    /// Ternary.
    TQ1_0 "TQ1_0" 256 54 Some(34);
    /// Ternary.
    TQ2_0 "TQ2_0" 256 66 Some(35);
    /// 4-bit floats with a shared exponent for 32.
    MXFP4 "MXFP4" 32 17 Some(39);
}

impl Dtype {
    /// The type of that number in GGUF files.
    pub fn from_gguf(number: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|dtype| dtype.gguf() == Some(number))
    }

    /// The type of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|dtype| dtype.name() == name)
    }

    /// The type of that name in safetensors files.
    pub fn from_safetensors(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|dtype| dtype.block().0 == 1 && dtype.name() == name)
    }

    /// Bytes of a row of `elements`, if whole blocks make it up.
    pub fn row_bytes(self, elements: usize) -> Option<usize> {
        let (block, bytes) = self.block();
        if elements.is_multiple_of(block) { (elements / block).checked_mul(bytes) } else { None }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
