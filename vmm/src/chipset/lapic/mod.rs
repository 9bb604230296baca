//! The local APIC of one processor, as xAPIC and x2APIC (SDM vol. 3, chapter 11).
//!
//! It holds what was requested (IRR), what is being serviced (ISR), and the local sources. Messages to other processors
//! come out of a register write as an [`Effect`]; the board delivers them. `registers.rs` is the programmer's view,
//! `timer.rs` the timer.

mod registers;
mod timer;

use super::msi::{Delivery, Message};
use super::platform::LAPIC_BASE;
use timer::Timer;

/// IA32_APIC_BASE: bootstrap processor, x2APIC mode, global enable.
const BASE_BSP: u64 = 1 << 8;
const BASE_EXTD: u64 = 1 << 10;
const BASE_EN: u64 = 1 << 11;

const LVT_MASKED: u32 = 1 << 16;

/// Indices of the local vector table.
const LVT_TIMER: usize = 0;
const LVT_LINT0: usize = 3;
const LVT_LINT1: usize = 4;
const LVT_ERROR: usize = 5;

/// Bits of the error status register.
const ESR_SEND_ILLEGAL: u32 = 1 << 5;
const ESR_RECEIVE_ILLEGAL: u32 = 1 << 6;
const ESR_ILLEGAL_REGISTER: u32 = 1 << 7;

/// A 256-bit register: IRR, ISR or TMR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Vectors([u32; 8]);

impl Vectors {
    fn set(&mut self, vector: u8, value: bool) {
        let (word, bit) = (&mut self.0[usize::from(vector >> 5)], 1 << (vector & 31));
        *word = if value { *word | bit } else { *word & !bit };
    }
    fn get(&self, vector: u8) -> bool {
        self.0[usize::from(vector >> 5)] & 1 << (vector & 31) != 0
    }
    fn highest(&self) -> Option<u8> {
        (0..8).rev().find(|&i| self.0[i] != 0).map(|i| (i as u32 * 32 + 31 - self.0[i].leading_zeros()) as u8)
    }
}

/// Whom an inter-processor interrupt goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Those that the message's destination names.
    Destination,
    /// The sender.
    Myself,
    /// Every processor.
    All,
    /// Every processor but the sender.
    Others,
}

/// What a register write does outside this APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// An inter-processor interrupt.
    Send(Target, Message),
    /// End of a level-triggered interrupt: told to the IOAPIC.
    Eoi(u8),
}

/// The local APIC.
#[derive(Clone, Debug)]
pub struct Lapic {
    /// Initial APIC id: the processor's index.
    id: u32,
    xapic_id: u8,
    base: u64,
    svr: u32,
    tpr: u8,
    ldr: u32,
    dfr: u32,
    icr: u64,
    esr: u32,
    esr_pending: u32,
    lvt: [u32; 6],
    irr: Vectors,
    isr: Vectors,
    tmr: Vectors,
    /// An ExtINT message arrived (from the IOAPIC): the next acknowledge goes to the i8259 pair.
    ext_int: bool,
    timer: Timer,
}

impl Lapic {
    /// The APIC of processor `id` after power-up. LINT0 of the bootstrap processor is ExtINT and unmasked: the virtual
    /// wire that firmware sets up (MP specification 1.4, §3.6.2.2), because a kernel may start here without any.
    pub fn new(id: u32) -> Self {
        let mut apic = Self {
            id,
            xapic_id: id as u8,
            base: LAPIC_BASE | BASE_EN | if id == 0 { BASE_BSP } else { 0 },
            svr: 0xff,
            tpr: 0,
            ldr: 0,
            dfr: u32::MAX,
            icr: 0,
            esr: 0,
            esr_pending: 0,
            lvt: [LVT_MASKED; 6],
            irr: Vectors::default(),
            isr: Vectors::default(),
            tmr: Vectors::default(),
            ext_int: false,
            timer: Timer::default(),
        };
        if id == 0 {
            apic.lvt[LVT_LINT0] = 0x700;
            apic.lvt[LVT_LINT1] = 0x400;
        }
        apic
    }

    /// Back to the state after INIT: everything but the id and the base (SDM vol. 3, §11.4.7.3).
    pub fn init(&mut self) {
        let (base, xapic_id) = (self.base, self.xapic_id);
        *self = Self::new(self.id);
        self.base = base;
        self.xapic_id = xapic_id;
    }

    /// Globally enabled (IA32_APIC_BASE bit 11).
    pub fn enabled(&self) -> bool {
        self.base & BASE_EN != 0
    }
    fn x2apic(&self) -> bool {
        self.base & BASE_EXTD != 0
    }
    /// Enabled by software too (SVR bit 8): takes fixed interrupts.
    pub fn software_enabled(&self) -> bool {
        self.enabled() && self.svr & 0x100 != 0
    }

    /// Physical address of the register page, if memory-mapped registers are in use.
    pub fn page(&self) -> Option<u64> {
        (self.enabled() && !self.x2apic()).then_some(self.base & !0xfff)
    }

    /// True if `message` is addressed to this APIC (SDM vol. 3, §11.6.2).
    pub fn matches(&self, message: &Message) -> bool {
        let destination = message.destination;
        if !self.enabled() {
            return false;
        }
        if destination == u32::MAX || (!self.x2apic() && destination == 0xff) {
            return true;
        }
        match (message.logical, self.x2apic()) {
            (false, true) => destination == self.id,
            (false, false) => destination == u32::from(self.xapic_id),
            (true, true) => {
                destination >> 16 == self.x2apic_ldr() >> 16 && destination & self.x2apic_ldr() & 0xffff != 0
            }
            (true, false) => {
                let mine = self.ldr >> 24;
                if self.dfr >> 28 == 0 {
                    destination & 0xf0 == mine & 0xf0 && destination & mine & 15 != 0
                } else {
                    destination & mine & 0xff != 0
                }
            }
        }
    }

    fn x2apic_ldr(&self) -> u32 {
        (self.id >> 4) << 16 | 1 << (self.id & 15)
    }

    /// Takes a fixed (or lowest-priority) interrupt. False if this APIC is not accepting any.
    pub fn accept(&mut self, vector: u8, level: bool) -> bool {
        if !self.software_enabled() {
            return false;
        }
        if vector < 16 {
            self.error(ESR_RECEIVE_ILLEGAL);
            return false;
        }
        self.irr.set(vector, true);
        self.tmr.set(vector, level);
        true
    }

    /// Takes an ExtINT message.
    pub fn accept_ext_int(&mut self) {
        self.ext_int = true;
    }

    /// Logs an error and raises the error interrupt (SDM vol. 3, §11.5.3).
    fn error(&mut self, bit: u32) {
        let new = self.esr_pending & bit == 0;
        self.esr_pending |= bit;
        let lvt = self.lvt[LVT_ERROR];
        if new && lvt & LVT_MASKED == 0 && lvt as u8 >= 16 {
            self.accept(lvt as u8, false);
        }
    }

    /// Processor priority: the higher class of TPR and of what is in service (SDM vol. 3, §11.8.3.1).
    pub fn priority(&self) -> u8 {
        let service = self.isr.highest().unwrap_or(0);
        if self.tpr >> 4 >= service >> 4 { self.tpr } else { service & 0xf0 }
    }

    /// True while `vector` is requested and not yet acknowledged: another request would be lost in it.
    pub fn is_requested(&self, vector: u8) -> bool {
        self.irr.get(vector)
    }

    /// The vector that would be delivered now.
    pub fn pending(&self) -> Option<u8> {
        self.irr.highest().filter(|v| self.software_enabled() && v >> 4 > self.priority() >> 4)
    }

    /// True if LINT0 is a virtual wire to the i8259 pair, or the APIC is off and the pair reaches the processor itself.
    pub fn lint0_ext_int(&self) -> bool {
        !self.enabled() || self.lvt[LVT_LINT0] & (LVT_MASKED | 0x700) == 0x700
    }

    /// True if an edge on LINT1 is an NMI.
    pub fn lint1_nmi(&self) -> bool {
        !self.enabled() || self.lvt[LVT_LINT1] & (LVT_MASKED | 0x700) == 0x400
    }

    /// True while an ExtINT message waits.
    pub fn ext_int(&self) -> bool {
        self.ext_int
    }

    /// Uses up a waiting ExtINT message.
    pub fn take_ext_int(&mut self) {
        self.ext_int = false;
    }

    /// Interrupt acknowledge: moves the highest request to service.
    pub fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.pending()?;
        self.irr.set(vector, false);
        self.isr.set(vector, true);
        Some(vector)
    }

    fn end_of_interrupt(&mut self) -> Effect {
        let Some(vector) = self.isr.highest() else { return Effect::None };
        self.isr.set(vector, false);
        // SVR bit 12 would suppress the broadcast; the version register does not offer it.
        if self.tmr.get(vector) { Effect::Eoi(vector) } else { Effect::None }
    }

    /// What a write to the command register sends (SDM vol. 3, §11.6.1).
    fn command(&mut self) -> Effect {
        let low = self.icr as u32;
        let delivery = Delivery::from_bits(low >> 8);
        let vector = low as u8;
        if matches!(delivery, Delivery::Fixed | Delivery::LowestPriority) && vector < 16 {
            self.error(ESR_SEND_ILLEGAL);
            return Effect::None;
        }
        // INIT level de-assert only resets arbitration ids, which these processors do not have.
        if delivery == Delivery::Init && low & (1 << 15 | 1 << 14) == 1 << 15 {
            return Effect::None;
        }
        let high = (self.icr >> 32) as u32;
        let message = Message {
            destination: if self.x2apic() { high } else { high >> 24 },
            logical: low & 1 << 11 != 0,
            delivery,
            vector,
            level: false,
        };
        let target = [Target::Destination, Target::Myself, Target::All, Target::Others][(low >> 18 & 3) as usize];
        Effect::Send(target, message)
    }

    /// When the timer's interrupt is due, in nanoseconds; [`super::NEVER`] without one.
    pub fn deadline(&self) -> u64 {
        if self.lvt[LVT_TIMER] & LVT_MASKED != 0 || !self.software_enabled() {
            return super::NEVER;
        }
        self.timer.due()
    }

    /// When [`Self::advance`] has something to do, be it without an interrupt: a masked timer expires unheard.
    pub fn timer_due(&self) -> u64 {
        self.timer.due()
    }

    /// Brings the timer up to `now`; `tsc` is the host's counter at that time. Returns the TSC deadline if the timer
    /// came due in nanoseconds before the counter got there: the caller converts it again.
    pub fn advance(&mut self, now: u64, tsc: u64) -> Option<u64> {
        if now < self.timer.due() {
            return None;
        }
        if let Some(deadline) = self.timer.tsc_deadline()
            && tsc < deadline
        {
            return Some(deadline);
        }
        if self.timer.expire(now) && self.lvt[LVT_TIMER] & LVT_MASKED == 0 {
            self.accept(self.lvt[LVT_TIMER] as u8, false);
        }
        None
    }

    /// Sets IA32_TSC_DEADLINE (host TSC units), which the host's clock reaches at `due` nanoseconds.
    pub fn set_tsc_deadline(&mut self, tsc: u64, due: u64) {
        self.timer.set_deadline(tsc, due);
    }

    /// IA32_TSC_DEADLINE: zero when disarmed or in another mode.
    pub fn tsc_deadline(&self) -> u64 {
        self.timer.tsc_deadline().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests;
