//! What the checker knows of registers at one point of a block.

use iced_x86::Register;

use crate::engine::translate::context::host;

/// What a register holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// Anything.
    Unknown,
    /// A number below 2^32: guest data or a guest address.
    Narrow,
    /// `Context::fp_absent`: zero if guest x87, SSE and AVX state is in host registers.
    FpAbsent,
    /// The quarter of the address space that the linear address in a register lies in.
    Quarter(u8),
    /// The base of the window for the linear address in a register.
    Window(u8),
    /// The host address, inside a window, of a guest linear address.
    Pointer,
    /// `Context::branches`.
    Branches,
    /// An index into the indirect-branch table, for the guest EIP in r8d.
    Index,
    /// The executable address of this offset in the block.
    Code(u32),
    /// A stage of a time stamp: 0 a half of the host's, 1 its high half in place, 2 the host's, 3 the guest's, 4 the guest's
    /// high half.
    Time(u8),
    /// `Context::tsc_offset`.
    TimeOffset,
    /// Arithmetic flags and DF, and no other bit.
    HostFlags,
    /// EFLAGS.IF, and no other bit.
    Flag,
    /// The host address of the guest's ESP, in the window that GS base points at or near it: see [`NEAR`](super::super::context::NEAR).
    Stack,
}

/// What lies on the return stack above where it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stacked {
    /// Nothing.
    Nothing,
    /// Flags, to be read.
    Read,
    /// Flags, to be loaded.
    Write,
}

/// RAX, RCX, RDX, RBX, RBP, RSI and RDI, by hardware number.
const GUEST: [u8; 7] = [0, 1, 2, 3, 5, 6, 7];
/// RSI and RDI.
const STRING: [u8; 2] = [6, 7];
/// The register that indirect branches pass a guest EIP in.
pub const TARGET: u8 = 8;

/// True for the translator's scratch registers, r8 to r11.
pub fn scratch(number: u8) -> bool {
    (8..12).contains(&number)
}

/// True for registers that emitted code may change.
pub fn writable(number: u8) -> bool {
    scratch(number) || GUEST.contains(&number) || number == host::ESP
}

/// Hardware number of a general register of any width.
pub fn number(register: Register) -> u8 {
    (register.full_register() as u8).wrapping_sub(Register::RAX as u8)
}

/// What is known before an instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    values: [Value; 16],
    /// `Context::site` was set to a site of this block.
    pub site: bool,
    /// Guest x87, SSE and AVX state is in host registers.
    pub fp: bool,
    /// What was pushed and not popped.
    pub stacked: Stacked,
    /// r14 was used for an access near it, or made from ESP, since it was last moved.
    pub anchored: bool,
    /// The first and the last word of the frame that r14 points at were read.
    pub frame: [bool; 2],
}

impl State {
    /// At the entry of direct branches: guest registers are as they should be, and that is all.
    pub fn entry() -> Self {
        let mut values = [Value::Unknown; 16];
        GUEST.iter().for_each(|&g| values[g as usize] = Value::Narrow);
        values[host::ESP as usize] = Value::Stack;
        Self { values, site: false, fp: false, stacked: Stacked::Nothing, anchored: false, frame: [false; 2] }
    }

    /// At the entry of indirect branches, which have the guest EIP in r8.
    pub fn indirect_entry() -> Self {
        let mut state = Self::entry();
        state.values[TARGET as usize] = Value::Narrow;
        state
    }

    /// Where an instruction is started again, which makes r14 from ESP; or, if that is an entry, where other blocks come
    /// in, with r14 as they left it.
    pub fn restart(fp: bool, entry: bool) -> Self {
        Self { fp, anchored: !entry, ..Self::entry() }
    }

    /// What register `number` holds.
    pub fn get(&self, number: u8) -> Value {
        self.values[number as usize & 15]
    }

    /// True if register `number` is below 2^32.
    pub fn narrow(&self, number: u8) -> bool {
        self.get(number) == Value::Narrow
    }

    /// Register `number` is overwritten: what was derived from it no longer belongs to it.
    pub fn set(&mut self, number: u8, value: Value) {
        self.values[number as usize & 15] = value;
        if number == host::ESP {
            self.frame = [false; 2];
        }
        for v in &mut self.values {
            let stale = match *v {
                Value::Quarter(of) | Value::Window(of) => of == number,
                Value::Index => number == TARGET,
                _ => false,
            };
            if stale {
                *v = Value::Unknown;
            }
        }
    }

    /// Keeps what is true both here and in `other`; true if that is less than before.
    pub fn meet(&mut self, other: &Self) -> bool {
        let before = self.clone();
        for (v, o) in self.values.iter_mut().zip(&other.values) {
            if v != o {
                *v = Value::Unknown;
            }
        }
        self.site &= other.site;
        self.fp &= other.fp;
        self.anchored &= other.anchored;
        self.frame.iter_mut().zip(other.frame).for_each(|(read, other)| *read &= other);
        if self.stacked != other.stacked {
            // No rule accepts what is neither.
            self.values = [Value::Unknown; 16];
        }
        *self != before
    }

    /// True if register `number` holds guest data in its low half: in r14, that is ESP.
    pub fn shows_guest(&self, number: u8) -> bool {
        self.narrow(number) || (number == host::ESP && self.get(number) == Value::Stack)
    }

    /// Every guest register has a zero upper half, and r14 is the host address of ESP.
    pub fn require_guest_narrow(&self) -> Result<(), &'static str> {
        self.require_stack()?;
        match GUEST.iter().all(|&g| self.narrow(g)) {
            true if self.stacked != Stacked::Nothing => Err("the return stack is not where it was"),
            true => Ok(()),
            false => Err("a guest register may have a set upper half where the block can be left"),
        }
    }

    fn require_stack(&self) -> Result<(), &'static str> {
        match self.get(host::ESP) {
            Value::Stack => Ok(()),
            _ => Err("r14 may be something else than an address near the window where the block can be left"),
        }
    }

    /// As [`Self::require_guest_narrow`], but RSI and RDI may be host addresses of guest data.
    pub fn require_interruptible(&self) -> Result<(), &'static str> {
        self.require_stack()?;
        let good = |g: &u8| self.narrow(*g) || (STRING.contains(g) && self.get(*g) == Value::Pointer);
        match GUEST.iter().all(good) {
            true => Ok(()),
            false => Err("a guest register may have a set upper half in an interruptible string instruction"),
        }
    }
}
