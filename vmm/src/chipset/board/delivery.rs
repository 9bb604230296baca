//! How interrupt messages find processors, and what a processor gets when it acknowledges.

use super::BoardEvent;
use super::wires::Inner;
use crate::chipset::lapic::{Effect, Target};
use crate::chipset::msi::{Delivery, Message};

impl Inner {
    /// Sends what the IOAPIC's pins ask for.
    pub fn pump(&mut self) {
        self.ioapic.set_pin(0, self.pic.int());
        let mut from = 0;
        while let Some((pin, message)) = self.ioapic.next_message(from) {
            let accepted = self.deliver(&message);
            self.ioapic.sent(pin, accepted);
            from = pin + 1;
        }
    }

    /// Delivers `message` to the processors it names. True if one accepted it.
    fn deliver(&mut self, message: &Message) -> bool {
        let targets: Vec<usize> = (0..self.lapics.len()).filter(|i| self.lapics[*i].matches(message)).collect();
        self.deliver_to(&targets, message)
    }

    fn deliver_to(&mut self, targets: &[usize], message: &Message) -> bool {
        if message.delivery == Delivery::LowestPriority {
            let able = targets.iter().copied().filter(|i| self.lapics[*i].software_enabled());
            let lowest = able.min_by_key(|i| self.lapics[*i].priority());
            return lowest.is_some_and(|i| self.lapics[i].accept(message.vector, message.level));
        }
        targets.iter().fold(false, |accepted, i| self.deliver_one(*i, message) | accepted)
    }

    fn deliver_one(&mut self, cpu: usize, message: &Message) -> bool {
        match message.delivery {
            Delivery::Fixed | Delivery::LowestPriority => {
                return self.lapics[cpu].accept(message.vector, message.level);
            }
            Delivery::Nmi => self.lines[cpu].raise_nmi(),
            Delivery::Init => {
                self.lapics[cpu].init();
                self.raise(BoardEvent::Init(cpu));
            }
            Delivery::StartUp => self.raise(BoardEvent::StartUp(cpu, message.vector)),
            Delivery::ExtInt => self.lapics[cpu].accept_ext_int(),
            // There is no system-management mode.
            Delivery::Smi | Delivery::Reserved => return false,
        }
        true
    }

    /// Carries out what a write to processor `cpu`'s APIC had as its effect.
    pub fn effect(&mut self, cpu: usize, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Eoi(vector) => self.ioapic.eoi(vector),
            Effect::Send(target, message) => {
                let all = 0..self.lapics.len();
                let targets: Vec<usize> = match target {
                    Target::Destination => all.filter(|i| self.lapics[*i].matches(&message)).collect(),
                    Target::Myself => vec![cpu],
                    Target::All => all.collect(),
                    Target::Others => all.filter(|i| *i != cpu).collect(),
                };
                self.deliver_to(&targets, &message);
            }
        }
    }

    /// Delivers a device's message.
    pub fn deliver_msi(&mut self, address: u64, data: u32) {
        if let Some(message) = Message::from_msi(address, data) {
            self.deliver(&message);
        }
    }

    /// An edge on every processor's LINT1.
    pub fn raise_nmi(&mut self) {
        for (apic, lines) in self.lapics.iter().zip(&self.lines) {
            if apic.lint1_nmi() {
                lines.raise_nmi();
            }
        }
    }

    /// True if the i8259 pair interrupts processor `cpu`.
    fn pair_interrupts(&self, cpu: usize) -> bool {
        let Some(apic) = self.lapics.get(cpu) else { return false };
        ((cpu == 0 && apic.lint0_ext_int()) || apic.ext_int()) && self.pic.int()
    }

    /// Level of processor `cpu`'s INTR.
    pub fn wants_interrupt(&self, cpu: usize) -> bool {
        self.lapics.get(cpu).is_some_and(|apic| apic.pending().is_some()) || self.pair_interrupts(cpu)
    }

    /// Interrupt acknowledge of processor `cpu`: its APIC first, then the i8259 pair.
    pub fn acknowledge(&mut self, cpu: usize) -> Option<u8> {
        let pair = self.pair_interrupts(cpu);
        let apic = self.lapics.get_mut(cpu)?;
        if let Some(vector) = apic.acknowledge() {
            return Some(vector);
        }
        apic.take_ext_int();
        pair.then(|| self.pic.acknowledge())
    }
}
