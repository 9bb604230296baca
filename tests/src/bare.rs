//! Guests without an operating system: a few hundred bytes of 32-bit code that put the processor into a state, do one
//! thing, and report what happened on the serial line.
//!
//! [`Bare`] assembles such a guest in Rust: a run-time that catches every exception and prints its exact frame
//! (`runtime`), descriptor tables and page tables at fixed addresses (`tables`), all in one multiboot ELF image
//! (`elf`). `harness` runs an image on every monitor and compares its text with what the manual says.

mod elf;
pub mod harness;
pub mod runtime;
pub mod tables;

use iced_x86::code_asm::*;
use iced_x86::{Decoder, DecoderOptions, IcedError};

/// What emitting code returns.
pub type Emit<T = ()> = Result<T, IcedError>;

/// Fixed places in guest-physical memory. The image itself starts at 1 MiB.
pub mod at {
    /// Start of the image.
    pub const IMAGE: u32 = 0x10_0000;
    /// Global descriptor table: 32 entries.
    pub const GDT: u32 = 0x18_0000;
    /// Interrupt descriptor table: 256 gates.
    pub const IDT: u32 = 0x18_1000;
    /// The task in force.
    pub const TSS: u32 = 0x18_2000;
    /// Two more, for task switches.
    pub const TSS_B: u32 = 0x18_3000;
    /// See `TSS_B`.
    pub const TSS_C: u32 = 0x18_4000;
    /// Local descriptor table.
    pub const LDT: u32 = 0x18_5000;
    /// The run-time's variables: see `runtime`.
    pub const VARS: u32 = 0x18_6000;
    /// Words that a test may use as it likes.
    pub const SCRATCH: u32 = 0x18_7000;
    /// Top of the ring 0 stack.
    pub const STACK: u32 = 0x1a_0000;
    /// Top of the ring 1 stack.
    pub const STACK1: u32 = 0x1b_0000;
    /// Top of the stack for ring 3 code.
    pub const STACK3: u32 = 0x1c_0000;
    /// Top of a stack for handlers in other tasks.
    pub const STACK_B: u32 = 0x1d_0000;
    /// Page directory of two-level paging; its four tables follow.
    pub const PD: u32 = 0x20_0000;
    /// Page directory pointer table of three-level paging, its directory and eight tables follow.
    pub const PDPT: u32 = 0x20_8000;
    /// Memory for a test's own data and code, up to 16 MiB.
    pub const FREE: u32 = 0x80_0000;
}

/// Selectors of the descriptors that every guest starts with.
pub mod sel {
    /// Ring 0 code, flat.
    pub const CODE: u16 = 0x08;
    /// Ring 0 data, flat.
    pub const DATA: u16 = 0x10;
    /// Ring 3 code, flat.
    pub const CODE3: u16 = 0x1b;
    /// Ring 3 data, flat.
    pub const DATA3: u16 = 0x23;
    /// The task state segment.
    pub const TSS: u16 = 0x28;
    /// Ring 1 code, flat.
    pub const CODE1: u16 = 0x31;
    /// Ring 1 data, flat.
    pub const DATA1: u16 = 0x39;
    /// The first of the descriptors that a test may fill: this one and the following, up to 0xf8.
    pub const FREE: u16 = 0x40;
}

/// A guest being assembled.
pub struct Bare {
    /// The assembler, at the current point of the test.
    pub asm: CodeAssembler,
    rt: runtime::Labels,
    /// Labels whose addresses are taken as data: see [`Bare::address`].
    taken: Vec<CodeLabel>,
}

/// Stands for the address of the n-th taken label until the code is placed.
const PLACEHOLDER: u32 = 0x5eed_0000;
/// Marks the jumps that tell where the taken labels lie.
const PLACES: &[u8] = b"places of labels";

impl Bare {
    /// A guest whose run-time is in place: protected mode, flat segments, IDT full of reporting handlers, interrupts
    /// off and both PICs masked. What is emitted next runs in ring 0.
    pub fn new() -> Emit<Self> {
        let mut asm = CodeAssembler::new(32)?;
        let rt = runtime::emit(&mut asm)?;
        let mut bare = Self { asm, rt, taken: Vec::new() };
        bare.set_up_tables()?;
        Ok(bare)
    }

    /// Ends the guest by the debug exit port, and returns its image.
    pub fn finish(mut self) -> Emit<Vec<u8>> {
        self.asm.jmp(self.rt.end)?;
        // The assembler resolves labels in branches alone: jumps that are never run tell where labels came to lie.
        self.asm.db(PLACES)?;
        for label in self.taken.clone() {
            self.asm.jmp(label)?;
        }
        let mut code = self.asm.assemble(u64::from(at::IMAGE))?;
        for (index, address) in places(&code).into_iter().enumerate() {
            let placeholder = mov_eax(PLACEHOLDER + index as u32);
            while let Some(offset) = code.windows(5).position(|window| window == placeholder) {
                code[offset..offset + 5].copy_from_slice(&mov_eax(address));
            }
        }
        Ok(elf::image(&code))
    }

    /// Puts the address of `label` into EAX.
    pub fn address(&mut self, label: CodeLabel) -> Emit {
        let index = self.taken.len() as u32;
        self.taken.push(label);
        self.asm.db(&mov_eax(PLACEHOLDER + index))
    }

    /// Prints a text.
    pub fn print(&mut self, text: &str) -> Emit {
        let mut after = self.asm.create_label();
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.asm.call(after)?;
        self.asm.db(&bytes)?;
        self.asm.set_label(&mut after)?;
        self.asm.call(self.rt.print)
    }

    /// Ends the guest here.
    pub fn jump_to_end(&mut self) -> Emit {
        self.asm.jmp(self.rt.end)
    }

    /// Prints EAX.
    pub fn hex(&mut self) -> Emit {
        self.asm.call(self.rt.hex)
    }

    /// Prints `name`, the value of EAX, and ends the line.
    pub fn show(&mut self, name: &str) -> Emit {
        self.print(&format!("{name} "))?;
        self.asm.call(self.rt.hex)?;
        self.print("\n")
    }

    /// Prints a doubleword of memory.
    pub fn show_memory(&mut self, name: &str, address: u32) -> Emit {
        self.asm.mov(eax, dword_ptr(address))?;
        self.show(name)
    }

    /// Stores a doubleword.
    pub fn poke(&mut self, address: u32, value: u32) -> Emit {
        self.asm.mov(dword_ptr(address), value)
    }

    /// Stores a quadword, such as a descriptor.
    pub fn poke64(&mut self, address: u32, value: u64) -> Emit {
        self.poke(address, value as u32)?;
        self.poke(address + 4, (value >> 32) as u32)
    }

    /// Runs `setup`, then `body`, of which some instruction faults; the report's address is relative to where `body`
    /// starts. Without a fault it prints "none". Afterwards every register but ESP is undefined, in ring 0, flat.
    pub fn fault(
        &mut self,
        name: &str,
        setup: impl FnOnce(&mut Self) -> Emit,
        body: impl FnOnce(&mut Self) -> Emit,
    ) -> Emit {
        self.print(&format!("{name}: "))?;
        let (mut start, mut resume) = (self.asm.create_label(), self.asm.create_label());
        self.expect_at(start)?;
        self.resume_at(resume)?;
        setup(self)?;
        self.asm.set_label(&mut start)?;
        self.asm.zero_bytes()?;
        body(self)?;
        self.print("none\n")?;
        self.asm.set_label(&mut resume)?;
        self.asm.nop()
    }

    /// Reported addresses are relative to `label` from now on. Clobbers EAX.
    pub fn expect_at(&mut self, label: CodeLabel) -> Emit {
        self.address(label)?;
        self.asm.mov(dword_ptr(runtime::EXPECTED), eax)
    }

    /// After a report execution goes on at `label`, with ESP as it is now. Clobbers EAX.
    pub fn resume_at(&mut self, label: CodeLabel) -> Emit {
        self.address(label)?;
        self.asm.mov(dword_ptr(runtime::RESUME), eax)?;
        self.asm.mov(dword_ptr(runtime::RESUME_ESP), esp)
    }

    /// A gate of the IDT: `access` is the descriptor's byte 5, such as 0x8e for a 32-bit interrupt gate. Clobbers
    /// EAX, EBX and EDX.
    pub fn gate(&mut self, vector: u8, selector: u16, handler: CodeLabel, access: u8) -> Emit {
        self.address(handler)?;
        self.asm.mov(ebx, u32::from(vector))?;
        self.asm.mov(edx, u32::from(selector) << 16 | u32::from(access))?;
        self.asm.call(self.rt.set_gate)
    }

    /// Goes to ring 3 at `label` with flat segments. Clobbers EAX.
    pub fn ring3(&mut self, label: CodeLabel) -> Emit {
        self.ring(label, sel::CODE3, sel::DATA3, at::STACK3)
    }

    /// Goes to an outer ring at `label`.
    pub fn ring(&mut self, label: CodeLabel, code: u16, data: u16, stack: u32) -> Emit {
        self.asm.mov(eax, u32::from(data))?;
        self.asm.mov(ds, eax)?;
        self.asm.mov(es, eax)?;
        self.address(label)?;
        self.asm.push(i32::from(data))?;
        self.asm.push(stack as i32)?;
        self.asm.push(2)?;
        self.asm.push(i32::from(code))?;
        self.asm.push(eax)?;
        self.asm.iretd()
    }

    /// Like [`Bare::fault`], with `body` in ring 3.
    pub fn fault_in_ring3(&mut self, name: &str, body: impl FnOnce(&mut Self) -> Emit) -> Emit {
        self.fault_in_ring(name, sel::CODE3, sel::DATA3, at::STACK3, body)
    }

    /// Like [`Bare::fault`], with `body` in the ring of `code`.
    pub fn fault_in_ring(
        &mut self,
        name: &str,
        code: u16,
        data: u16,
        stack: u32,
        body: impl FnOnce(&mut Self) -> Emit,
    ) -> Emit {
        self.print(&format!("{name}: "))?;
        let (mut start, mut resume) = (self.asm.create_label(), self.asm.create_label());
        self.expect_at(start)?;
        self.resume_at(resume)?;
        self.ring(start, code, data, stack)?;
        self.asm.set_label(&mut start)?;
        self.asm.zero_bytes()?;
        body(self)?;
        // Vector 0x80 is open to all rings: its report says that nothing else happened.
        self.asm.int(0x80)?;
        self.asm.set_label(&mut resume)?;
        self.asm.nop()
    }

    /// The run-time's report of an exception, as a handler that a gate can name.
    pub fn reporter(&self, vector: u8) -> Option<CodeLabel> {
        self.rt.stubs.get(usize::from(vector)).copied()
    }
}

/// MOV EAX, imm32: B8 and the value.
fn mov_eax(value: u32) -> [u8; 5] {
    let [a, b, c, d] = value.to_le_bytes();
    [0xb8, a, b, c, d]
}

/// Targets of the jumps after the marker, in order.
fn places(code: &[u8]) -> Vec<u32> {
    let marker = code.windows(PLACES.len()).rposition(|window| window == PLACES);
    let start = marker.map_or(code.len(), |offset| offset + PLACES.len());
    let address = u64::from(at::IMAGE) + start as u64;
    let decoder = Decoder::with_ip(32, &code[start..], address, DecoderOptions::NONE);
    decoder.into_iter().map(|jump| jump.near_branch32()).collect()
}
