//! Descriptor tables, task state segments, page tables and the interrupt controllers of a bare guest.

use iced_x86::code_asm::*;

use super::{Bare, Emit, at, sel};

/// A segment descriptor. `limit` is the 20-bit field; `flags` are G, D/B, L and AVL as the high nibble of byte 6.
pub const fn descriptor(base: u32, limit: u32, access: u8, flags: u8) -> u64 {
    let (base, limit) = (base as u64, limit as u64);
    let low = (limit & 0xffff) | (base & 0xff_ffff) << 16;
    low | (access as u64) << 40 | (limit >> 16 & 0xf) << 48 | (flags as u64) << 52 | (base >> 24) << 56
}

/// A call gate (access type 0xc), with a count of parameters.
pub const fn call_gate(selector: u16, offset: u32, parameters: u8, access: u8) -> u64 {
    (offset as u64 & 0xffff)
        | (selector as u64) << 16
        | (parameters as u64) << 32
        | (access as u64) << 40
        | (offset as u64 >> 16) << 48
}

/// Address of the page-table entry that maps `linear` under [`Bare::page_4k`].
pub const fn pte(linear: u32) -> u32 {
    at::PD + 0x1000 + (linear >> 12) * 4
}

/// Address of the page-table entry that maps `linear` under [`Bare::page_pae`].
pub const fn pae_pte(linear: u32) -> u32 {
    at::PDPT + 0x2000 + (linear >> 12) * 8
}

impl Bare {
    /// Descriptor `selector` of the GDT.
    pub fn set_descriptor(&mut self, selector: u16, value: u64) -> Emit {
        self.poke64(at::GDT + u32::from(selector & !7), value)
    }

    /// GDT, segment registers, IDT, TSS and masked PICs.
    pub(super) fn set_up_tables(&mut self) -> Emit {
        self.poke64(at::GDT, 0)?;
        let flat = |access| descriptor(0, 0xf_ffff, access, 0xc);
        for (selector, access) in [
            (sel::CODE, 0x9b),
            (sel::DATA, 0x93),
            (sel::CODE3, 0xfb),
            (sel::DATA3, 0xf3),
            (sel::CODE1, 0xbb),
            (sel::DATA1, 0xb3),
        ] {
            self.set_descriptor(selector, flat(access))?;
        }
        self.set_descriptor(sel::TSS, descriptor(at::TSS, 0x67, 0x89, 0))?;
        self.load_gdt(0xff)?;
        self.load_segments()?;
        for (offset, value) in
            [(4, at::STACK - 0x4000), (8, 0x10), (12, at::STACK1), (16, u32::from(sel::DATA1)), (0x64, 0x68 << 16)]
        {
            self.poke(at::TSS + offset, value)?;
        }
        self.asm.mov(eax, u32::from(sel::TSS))?;
        self.asm.ltr(ax)?;
        self.asm.xor(eax, eax)?;
        self.asm.lldt(ax)?;
        for (vector, stub) in self.rt.stubs.clone().into_iter().enumerate() {
            self.gate(vector as u8, sel::CODE, stub, 0x8e)?;
        }
        // `int3`, `into` and vector 80h are open to all rings.
        for (vector, stub) in [(3, 3), (4, 4), (0x80, 31)] {
            if let Some(handler) = self.reporter(stub) {
                self.gate(vector, sel::CODE, handler, 0xee)?;
            }
        }
        self.load_idt(0x7ff)?;
        self.mask_pics()
    }

    fn load_gdt(&mut self, limit: u32) -> Emit {
        self.poke(at::SCRATCH, limit | at::GDT << 16)?;
        self.poke(at::SCRATCH + 4, at::GDT >> 16)?;
        self.asm.lgdt(fword_ptr(at::SCRATCH))
    }

    /// The IDT with another limit.
    pub fn load_idt(&mut self, limit: u32) -> Emit {
        self.poke(at::SCRATCH, limit | at::IDT << 16)?;
        self.poke(at::SCRATCH + 4, at::IDT >> 16)?;
        self.asm.lidt(fword_ptr(at::SCRATCH))
    }

    fn load_segments(&mut self) -> Emit {
        let mut here = self.asm.create_label();
        self.asm.push(i32::from(sel::CODE))?;
        self.address(here)?;
        self.asm.push(eax)?;
        self.asm.retf()?;
        self.asm.set_label(&mut here)?;
        self.asm.mov(eax, u32::from(sel::DATA))?;
        for segment in [ds, es, fs, gs, ss] {
            self.asm.mov(segment, eax)?;
        }
        Ok(())
    }

    /// Both PICs at vectors 20h and 28h, all inputs masked.
    fn mask_pics(&mut self) -> Emit {
        for (port, value) in
            [(0x20, 0x11), (0xa0, 0x11), (0x21, 0x20), (0xa1, 0x28), (0x21, 4), (0xa1, 2), (0x21, 1), (0xa1, 1)]
        {
            self.out(port, value)?;
        }
        self.out(0x21, 0xff)?;
        self.out(0xa1, 0xff)
    }

    /// Writes a byte to a port. Clobbers AL.
    pub fn out(&mut self, port: u8, value: u8) -> Emit {
        self.asm.mov(al, u32::from(value))?;
        self.asm.out(u32::from(port), al)
    }

    /// Writes an MSR's low half. Clobbers EAX, ECX and EDX.
    pub fn msr(&mut self, index: u32, value: u32) -> Emit {
        self.asm.mov(ecx, index)?;
        self.asm.mov(eax, value)?;
        self.asm.xor(edx, edx)?;
        self.asm.wrmsr()
    }

    /// The whole of a handler that counts the timer's interrupts at [`at::SCRATCH`].
    pub fn tick(&mut self) -> Emit {
        self.asm.push(eax)?;
        self.asm.inc(dword_ptr(at::SCRATCH))?;
        self.out(0x20, 0x20)?;
        self.asm.pop(eax)?;
        self.asm.iretd()
    }

    /// The timer's interrupt, input 0, is requested and stays so: IF is clear, the input is open.
    pub fn request_timer(&mut self) -> Emit {
        self.asm.cli()?;
        // Acknowledge what was in service, then one-shot mode 0 with a count of 100.
        self.out(0x20, 0x20)?;
        self.out(0x43, 0x30)?;
        self.out(0x40, 100)?;
        self.out(0x40, 0)?;
        self.out(0x21, 0xfe)?;
        // Read the request register until bit 0 shows.
        self.out(0x20, 0x0a)?;
        let mut wait = self.asm.create_label();
        self.asm.set_label(&mut wait)?;
        self.asm.in_(al, 0x20)?;
        self.asm.test(al, 1)?;
        self.asm.jz(wait)
    }

    /// Two-level paging on: 16 MiB mapped one to one with 4 KiB pages, for all rings, writable.
    pub fn page_4k(&mut self) -> Emit {
        let mut next = self.asm.create_label();
        self.asm.mov(edi, at::PD)?;
        self.asm.xor(eax, eax)?;
        self.asm.mov(ecx, 1024)?;
        self.asm.rep().stosd()?;
        self.asm.mov(eax, 7)?;
        self.asm.mov(ecx, 4096)?;
        self.asm.set_label(&mut next)?;
        self.asm.stosd()?;
        self.asm.add(eax, 0x1000)?;
        self.asm.dec(ecx)?;
        self.asm.jnz(next)?;
        for table in 0..4 {
            self.poke(at::PD + table * 4, (at::PD + 0x1000 + table * 0x1000) | 7)?;
        }
        self.paging_on(at::PD, 0)
    }

    /// Three-level paging on: the same mapping by eight-byte entries.
    pub fn page_pae(&mut self) -> Emit {
        let mut next = self.asm.create_label();
        self.asm.mov(edi, at::PDPT)?;
        self.asm.xor(eax, eax)?;
        self.asm.mov(ecx, 2048)?;
        self.asm.rep().stosd()?;
        self.asm.mov(eax, 7)?;
        self.asm.mov(ecx, 4096)?;
        self.asm.set_label(&mut next)?;
        self.asm.stosd()?;
        self.asm.mov(dword_ptr(edi), 0)?;
        self.asm.add(edi, 4)?;
        self.asm.add(eax, 0x1000)?;
        self.asm.dec(ecx)?;
        self.asm.jnz(next)?;
        self.poke(at::PDPT, (at::PDPT + 0x1000) | 1)?;
        for table in 0..8 {
            self.poke(at::PDPT + 0x1000 + table * 8, (at::PDPT + 0x2000 + table * 0x1000) | 7)?;
        }
        self.paging_on(at::PDPT, 0x20)
    }

    /// Sets `cr4` bits, CR3, and CR0.PG.
    pub fn paging_on(&mut self, root: u32, bits: u32) -> Emit {
        self.cr4_set(bits)?;
        self.asm.mov(eax, root)?;
        self.asm.mov(cr3, eax)?;
        self.cr0_set(0x8000_0000)
    }

    /// Sets bits of CR0. Clobbers EAX.
    pub fn cr0_set(&mut self, bits: u32) -> Emit {
        self.asm.mov(eax, cr0)?;
        self.asm.or(eax, bits as i32)?;
        self.asm.mov(cr0, eax)
    }

    /// Clears bits of CR0. Clobbers EAX.
    pub fn cr0_clear(&mut self, bits: u32) -> Emit {
        self.asm.mov(eax, cr0)?;
        self.asm.and(eax, !bits as i32)?;
        self.asm.mov(cr0, eax)
    }

    /// Sets bits of CR4. Clobbers EAX.
    pub fn cr4_set(&mut self, bits: u32) -> Emit {
        self.asm.mov(eax, cr4)?;
        self.asm.or(eax, bits as i32)?;
        self.asm.mov(cr4, eax)
    }

    /// Loads CR3 again, which drops every translation that is not global. Clobbers EAX.
    pub fn flush(&mut self) -> Emit {
        self.asm.mov(eax, cr3)?;
        self.asm.mov(cr3, eax)
    }
}
