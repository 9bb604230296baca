//! What the processor does with an exception, an interrupt or an INT, up to double faults and shutdown
//! (SDM vol. 3, §6.15, "Interrupt 8", and §17.2).

use super::interrupt::Event;
use super::{Exception, Flow, Stop, Vcpu, eflags, vector};

/// Bit 13 of DR6: a debug register was about to be accessed.
const DR6_BD: u32 = 1 << 13;
/// DR7.GD: accesses to debug registers fault.
const DR7_GD: u32 = 1 << 13;
/// Attempts at delivery before giving up. Each turn climbs the ladder benign, contributory, #PF, #DF, so that real
/// sequences end far below; the bound is for safety.
const ATTEMPTS: usize = 8;

/// Which instruction asked for a software interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SoftwareInterrupt {
    /// CD ib.
    IntN,
    /// CC.
    Int3,
    /// CE, with OF set.
    Into,
    /// F1: delivers #DB without checking the gate's privilege and without touching DR6.
    Int1,
}

/// SDM vol. 3, table 6-4.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

fn class(vector: u8) -> Class {
    match vector {
        vector::DE | vector::TS | vector::NP | vector::SS | vector::GP => Class::Contributory,
        vector::PF => Class::PageFault,
        vector::DF => Class::DoubleFault,
        _ => Class::Benign,
    }
}

impl Vcpu {
    /// Delivers exception `e`, and wakes a halted processor. EIP is that of the instruction for a fault, of the next one for a trap.
    ///
    /// Exceptions met on the way are delivered instead, become #DF, or end in [`Stop::TripleFault`].
    pub fn raise(&mut self, e: Exception) -> Flow<()> {
        let mut current = e;
        self.latch(e);
        for _ in 0..ATTEMPTS {
            let event = self.exception_event(current);
            let second = match self.deliver(&event) {
                Ok(None) => return Ok(()),
                Ok(Some(second)) | Err(Stop::Exception(second)) => second,
                Err(stop) => return Err(stop),
            };
            // Also one that ends as #DF: its handler finds the second #PF's address in CR2.
            self.latch(second);
            current = escalate(current.vector, second)?;
        }
        Err(Stop::TripleFault)
    }

    /// INT n, INT3, INTO (with OF set) or INT1. EIP is that of the next instruction. Where the IDT refuses, the error is
    /// an exception of the instruction itself.
    pub fn software_interrupt(&mut self, vector: u8, kind: SoftwareInterrupt) -> Flow<()> {
        if kind == SoftwareInterrupt::IntN && self.state.v8086() && self.state.iopl() < 3 {
            return Err(Stop::gp(0));
        }
        let from_program = kind != SoftwareInterrupt::Int1;
        // The instruction completes, which ends RF, before its flags are pushed (SDM vol. 3, §17.3.1.1).
        let event = Event {
            ext: !from_program as u16,
            software: from_program,
            ..Event::hardware(vector, self.state.eflags & !eflags::RF)
        };
        let outcome = self.deliver(&event)?;
        if !from_program {
            self.state.dr7 &= !DR7_GD;
        }
        match outcome {
            None => Ok(()),
            Some(e) => self.raise(e),
        }
    }

    /// Takes maskable interrupt `vector` at an instruction boundary. The caller has checked IF and acknowledged it.
    pub fn external_interrupt(&mut self, vector: u8) -> Flow<()> {
        self.take(vector)
    }

    /// Takes a non-maskable interrupt at an instruction boundary; further ones wait for IRET.
    pub fn nmi(&mut self) -> Flow<()> {
        self.state.nmi_blocked = true;
        self.take(vector::NMI)
    }

    /// Delivers a benign event; what goes wrong is an exception of the interrupted program.
    fn take(&mut self, vector: u8) -> Flow<()> {
        self.state.halted = false;
        match self.deliver(&Event::hardware(vector, self.state.eflags)) {
            Ok(None) => Ok(()),
            Ok(Some(e)) | Err(Stop::Exception(e)) => self.raise(e),
            Err(stop) => Err(stop),
        }
    }

    /// Sets the registers that describe the exception: CR2, or DR6 and DR7.GD.
    fn latch(&mut self, e: Exception) {
        match e.vector {
            vector::PF => self.state.cr2 = e.payload,
            vector::DB => {
                self.state.dr6 = self.state.dr6 & !0xf | e.payload;
                self.state.dr7 &= !DR7_GD;
            }
            _ => {}
        }
    }

    /// The event that delivers `e`. Faults push RF, so that an instruction breakpoint does not hit again on return.
    fn exception_event(&self, e: Exception) -> Event {
        let fault = match e.vector {
            vector::DB => e.payload & DR6_BD != 0,
            vector::NMI | vector::BP | vector::OF | vector::DF | vector::MC => false,
            _ => true,
        };
        let rf = if fault { eflags::RF } else { 0 };
        let error = e.has_error.then_some(e.error);
        Event { error, ..Event::hardware(e.vector, self.state.eflags | rf) }
    }
}

/// What to deliver after `second` arose while `first` was being delivered (SDM vol. 3, table 6-5).
fn escalate(first: u8, second: Exception) -> Flow<Exception> {
    use Class::*;
    match (class(first), class(second.vector)) {
        (DoubleFault, Contributory | PageFault | DoubleFault) => Err(Stop::TripleFault),
        (Contributory, Contributory) | (PageFault, Contributory | PageFault) => {
            Ok(Exception::with_error(vector::DF, 0))
        }
        _ => Ok(second),
    }
}
