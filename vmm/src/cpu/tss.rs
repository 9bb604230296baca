//! Task-state segments as they lie in memory (SDM vol. 3, §7.2.1 and §7.6).

use super::descriptor::system;
use super::{Flow, Segment, Vcpu, reg, seg};
use crate::mmu::Privilege;

/// Order of the general registers, which is that of their numbers.
const GENERAL: [usize; 8] = [reg::EAX, reg::ECX, reg::EDX, reg::EBX, reg::ESP, reg::EBP, reg::ESI, reg::EDI];
/// Order of the segment registers; a 16-bit TSS has the first four.
const SEGMENTS: [usize; 6] = [seg::ES, seg::CS, seg::SS, seg::DS, seg::FS, seg::GS];

/// Where the fields that a switch saves and loads lie.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    wide: bool,
}

impl Layout {
    pub fn of(attr: u32) -> Self {
        Self { wide: attr & system::WIDE != 0 }
    }
    /// Smallest limit that holds every field.
    pub fn least_limit(self) -> u32 {
        if self.wide { 0x67 } else { 0x2b }
    }
    /// Offset and length of the part that the processor saves.
    pub fn saved_part(self) -> (u32, u32) {
        if self.wide { (0x20, 0x40) } else { (0x0e, 0x1c) }
    }
    /// Bytes of a register field, also the size of an error code pushed in the task.
    pub fn size(self) -> u8 {
        if self.wide { 4 } else { 2 }
    }
    fn eip(self) -> u32 {
        if self.wide { 0x20 } else { 0x0e }
    }
    fn segments(self) -> u32 {
        if self.wide { 0x48 } else { 0x22 }
    }
    fn segment_count(self) -> usize {
        if self.wide { 6 } else { 4 }
    }
    fn ldt(self) -> u32 {
        if self.wide { 0x60 } else { 0x2a }
    }
}

/// What a new task starts with.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TaskImage {
    pub eip: u32,
    pub eflags: u32,
    pub gpr: [u32; 8],
    /// Indexed like `CpuState::seg`.
    pub selectors: [u16; 6],
    pub ldt: u16,
    /// None in a 16-bit TSS, which keeps the address space.
    pub cr3: Option<u32>,
    /// The T flag: #DB on entry.
    pub trap: bool,
}

impl Vcpu {
    /// Saves the running task's registers in its TSS; the caller has probed it.
    pub(super) fn save_task(&mut self, tr: &Segment, eflags: u32) -> Flow<()> {
        let layout = Layout::of(tr.attr);
        let step = layout.size() as u32;
        let mut at = tr.base.wrapping_add(layout.eip());
        let values = [self.state.eip, eflags].into_iter().chain(GENERAL.map(|r| self.state.gpr[r]));
        let selectors = SEGMENTS.map(|s| self.state.seg[s].selector as u32);
        // The field after EDI is ES in both layouts.
        let fields: Vec<u32> = values.chain(selectors.into_iter().take(layout.segment_count())).collect();
        for (i, value) in fields.into_iter().enumerate() {
            // Selector fields are 16 bits wide; what lies above them is not written.
            match layout.wide && i < 10 {
                true => self.store(at, value, Privilege::Supervisor)?,
                false => self.store(at, value as u16, Privilege::Supervisor)?,
            }
            at = at.wrapping_add(step);
        }
        Ok(())
    }

    /// Reads what a task starts with from the TSS at `base`.
    pub(super) fn load_task(&mut self, layout: Layout, base: u32) -> Flow<TaskImage> {
        let step = layout.size() as u32;
        let at = |offset: u32| base.wrapping_add(offset);
        let mut image = TaskImage {
            eip: self.load_field(layout, at(layout.eip()))?,
            eflags: self.load_field(layout, at(layout.eip() + step))?,
            ldt: self.load_system(at(layout.ldt()))?,
            ..TaskImage::default()
        };
        for (i, r) in GENERAL.into_iter().enumerate() {
            let value = self.load_field(layout, at(layout.eip() + step * (2 + i as u32)))?;
            // The upper halves are undefined after a 16-bit switch; processors are seen to set them.
            image.gpr[r] = if layout.wide { value } else { value | 0xffff_0000 };
        }
        for (i, s) in SEGMENTS.into_iter().take(layout.segment_count()).enumerate() {
            image.selectors[s] = self.load_system(at(layout.segments() + step * i as u32))?;
        }
        if layout.wide {
            image.cr3 = Some(self.load_system(at(0x1c))?);
            image.trap = self.load_system::<u16>(at(0x64))? & 1 != 0;
        }
        Ok(image)
    }

    fn load_field(&mut self, layout: Layout, linear: u32) -> Flow<u32> {
        match layout.wide {
            true => self.load_system::<u32>(linear),
            false => self.load_system::<u16>(linear).map(u32::from),
        }
    }
}
