//! How an instruction ends when it does not complete: a guest exception, or a stop of the whole VM.

use std::fmt;

/// Exception vectors (SDM vol. 3, table 6-1).
pub mod vector {
    #![allow(missing_docs)]
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const MC: u8 = 18;
    pub const XM: u8 = 19;
}

/// A guest exception that is about to be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Vector, 0 to 31.
    pub vector: u8,
    /// Whether an error code is pushed.
    pub has_error: bool,
    /// The error code; selector errors carry the selector index with EXT, IDT and TI in the low three bits.
    pub error: u16,
    /// For #PF the faulting linear address, loaded into CR2 at delivery; for #DB the bits to set in DR6.
    pub payload: u32,
}

impl Exception {
    /// An exception without an error code.
    pub const fn plain(vector: u8) -> Self {
        Self { vector, has_error: false, error: 0, payload: 0 }
    }

    /// An exception that pushes `error`.
    pub const fn with_error(vector: u8, error: u16) -> Self {
        Self { vector, has_error: true, error, payload: 0 }
    }

    /// #PF at `linear` with the error code of SDM vol. 3, §4.7.
    pub const fn page_fault(linear: u32, error: u16) -> Self {
        Self { vector: vector::PF, has_error: true, error, payload: linear }
    }

    /// #DB that sets `dr6` bits in DR6.
    pub const fn debug(dr6: u32) -> Self {
        Self { vector: vector::DB, has_error: false, error: 0, payload: dr6 }
    }
}

/// Something a guest asked for that Bulkhead does not do. The VM stops with this message; it never guesses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsupported {
    /// The instruction as text, or what was being done (for example `task switch through an IDT gate`).
    pub instruction: String,
    /// CS selector, and EIP of the instruction.
    pub cs: u16,
    /// EIP of the instruction.
    pub eip: u32,
    /// What is not supported, as the manual names it.
    pub feature: String,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` at {:04x}:{:08x} needs {}, which is not supported",
            self.instruction, self.cs, self.eip, self.feature
        )
    }
}

/// Why an operation of the processor did not complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The guest gets this exception.
    Exception(Exception),
    /// An exception could not be delivered, nor #DF: the processor shuts down (SDM vol. 3, §6.15).
    TripleFault,
    /// The VM stops and says why.
    Unsupported(Box<Unsupported>),
}

impl From<Exception> for Stop {
    #[inline]
    fn from(e: Exception) -> Self {
        Stop::Exception(e)
    }
}

/// Shorthands, used as `return Err(Stop::gp(0))`.
impl Stop {
    /// #GP with an error code.
    #[cold]
    pub fn gp(error: u16) -> Self {
        Exception::with_error(vector::GP, error).into()
    }
    /// #UD.
    #[cold]
    pub fn ud() -> Self {
        Exception::plain(vector::UD).into()
    }
    /// An exception without an error code.
    #[cold]
    pub fn plain(vector: u8) -> Self {
        Exception::plain(vector).into()
    }
    /// An exception with an error code.
    #[cold]
    pub fn with_error(vector: u8, error: u16) -> Self {
        Exception::with_error(vector, error).into()
    }
}

/// The result of anything a guest instruction does.
pub type Flow<T> = Result<T, Stop>;
