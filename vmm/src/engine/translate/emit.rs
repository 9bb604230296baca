//! Bytes of host code for one block. Guest instructions go through iced's encoder; the few shapes of our own are
//! written here. None of our own changes a flag, so guest flags stay in host flags throughout.

mod address;

use std::mem::offset_of;

use iced_x86::{Encoder, Instruction};

pub use address::{Address, PREFIXES};

use super::chart::CHART;
use super::context::{Context, host, index};

/// A position to patch with a branch displacement later.
#[derive(Clone, Copy, Debug)]
pub struct Fixup(usize);

/// How an indirect branch leaves, as the opcode extension of FF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// With the address of the next byte on the return stack.
    Call = 2,
    /// For good.
    Jump = 4,
}

/// Bytes of an indirect branch to the guest EIP in r8d.
const INDIRECT: usize = 13;

/// An indirect branch through the table of the address space.
pub fn by_table(transfer: Transfer) -> [u8; INDIRECT] {
    const BRANCHES: u8 = offset_of!(Context, branches) as u8;
    // pext r9d, r8d, r13d: VEX.LZ.F3.0F38.W0 F5 /r, with vvvv = r8 and rm = r13.
    let [a, b, c, d, e] = [0xc4, 0x42, (!8u8 & 0xf) << 3 | 0x02, 0xf5, 0xc8 | (host::TRIPWIRE & 7)];
    // mov r10, [r15 + branches]; jmp or call [r10 + r9*8]
    let leave = 0x04 | (transfer as u8) << 3;
    [a, b, c, d, e, 0x4d, 0x8b, 0x57, BRANCHES, 0x43, 0xff, leave, 0xca]
}

/// The same through the [chart](super::chart). What it leaves on the return stack is the same too.
pub fn by_chart(transfer: Transfer) -> [u8; INDIRECT] {
    let [a, b, c, d] = (CHART as u32).to_le_bytes();
    // A nop of five bytes; jmp or call [r15 + r8*8 + CHART]
    let leave = 0x84 | (transfer as u8) << 3;
    [0x0f, 0x1f, 0x44, 0, 0, 0x43, 0xff, leave, 0xc7, a, b, c, d]
}

/// The code of one block while it is written.
pub struct Emitter {
    /// Address at which the first byte will execute.
    pub origin: u64,
    /// The bytes so far.
    pub code: Vec<u8>,
    encoder: Encoder,
}

impl Emitter {
    /// An empty block that will execute at `origin`.
    pub fn new(origin: u64) -> Self {
        Self { origin, code: Vec::with_capacity(1024), encoder: Encoder::new(64) }
    }

    /// Offset of the next byte.
    pub fn position(&self) -> usize {
        self.code.len()
    }

    /// Starts over at another address.
    pub fn restart(&mut self, origin: u64) {
        self.origin = origin;
        self.code.clear();
    }

    /// Appends a guest instruction as the host shall execute it. False if it has no 64-bit encoding.
    pub fn instruction(&mut self, insn: &Instruction) -> bool {
        let before = self.code.len();
        self.encoder.set_buffer(std::mem::take(&mut self.code));
        let encoded = self.encoder.encode(insn, self.origin + before as u64);
        self.code = self.encoder.take_buffer();
        if encoded.is_err() {
            self.code.truncate(before);
        }
        encoded.is_ok()
    }

    /// Appends raw bytes.
    #[inline]
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.code.extend_from_slice(bytes);
    }

    /// ModRM, SIB and displacement of `[base + displacement]`, for any of the sixteen registers as base.
    fn memory(&mut self, reg: u8, base: u8, displacement: i32) {
        let short = i8::try_from(displacement).is_ok();
        let mode = if short { 0x40 } else { 0x80 };
        self.code.push(mode | (reg & 7) << 3 | (base & 7));
        if base & 7 == 4 {
            self.code.push(0x24);
        }
        if short {
            self.code.push(displacement as u8);
        } else {
            self.bytes(&displacement.to_le_bytes());
        }
    }

    /// An instruction `opcode reg, [base + displacement]`, 64-bit if `wide`.
    fn op_memory(&mut self, opcode: u8, wide: bool, reg: u8, base: u8, displacement: i32) {
        let rex = 0x40 | (wide as u8) << 3 | (reg >> 3) << 2 | (base >> 3);
        if rex != 0x40 {
            self.code.push(rex);
        }
        self.code.push(opcode);
        self.memory(reg, base, displacement);
    }

    /// `lea reg32, [base + displacement]`: addition without flags.
    pub fn lea32(&mut self, reg: u8, base: u8, displacement: i32) {
        if reg == base && displacement == 0 {
            return;
        }
        self.op_memory(0x8d, false, reg, base, displacement);
    }

    /// `to` = `from` + displacement, also when both are the same or the displacement is zero.
    pub fn lea32_or_mov(&mut self, to: u8, from: u8, displacement: i32) {
        match displacement {
            0 => self.mov32(to, from),
            d => self.lea32(to, from, d),
        }
    }

    /// r14 = r14 + `by`: see [`super::context::NEAR`].
    pub fn move_esp(&mut self, by: i32) {
        self.op_memory(0x8d, true, host::ESP, host::ESP, by);
    }

    /// r14 = the host address of the guest address that is the sum of `from`, which is below 2^32, and `by`.
    pub fn make_esp(&mut self, from: u8, by: i8) {
        // lea r14, [r12 + from + by]
        let mode = if by == 0 { 0x04 } else { 0x44 };
        self.bytes(&[0x4d | (from >> 3) << 1, 0x8d, mode | (host::ESP & 7) << 3]);
        self.bytes(&[(from & 7) << 3 | (host::WINDOW & 7)]);
        if by != 0 {
            self.code.push(by as u8);
        }
    }

    /// ESP = ESP + `by`, whatever r14 is near.
    pub fn move_esp_anew(&mut self, by: i32) {
        if by != 0 {
            self.lea32(host::ESP, host::ESP, by);
            self.make_esp(host::ESP, 0);
        }
    }

    /// `lea reg64, [reg64 + base]`.
    pub fn lea_sum(&mut self, reg: u8, base: u8) {
        // lea reg, [base + reg*1]; base is never rbp or r13, which would need a displacement.
        self.bytes(&[
            0x48 | (reg >> 3) << 2 | (reg >> 3) << 1 | base >> 3,
            0x8d,
            0x04 | (reg & 7) << 3,
            (reg & 7) << 3 | (base & 7),
        ]);
    }

    /// `mov reg32, reg32`: also clears the upper half of `to`.
    pub fn mov32(&mut self, to: u8, from: u8) {
        let rex = 0x40 | (from >> 3) << 2 | to >> 3;
        if rex != 0x40 {
            self.code.push(rex);
        }
        self.bytes(&[0x89, 0xc0 | (from & 7) << 3 | (to & 7)]);
    }

    /// `mov reg64, reg64`.
    pub fn mov64(&mut self, to: u8, from: u8) {
        self.bytes(&[0x48 | (from >> 3) << 2 | to >> 3, 0x89, 0xc0 | (from & 7) << 3 | (to & 7)]);
    }

    /// `mov reg32, immediate`.
    pub fn mov_immediate(&mut self, to: u8, value: u32) {
        if to >= 8 {
            self.code.push(0x41);
        }
        self.code.push(0xb8 | (to & 7));
        self.bytes(&value.to_le_bytes());
    }

    /// `mov reg, [context + offset]`.
    pub fn load_context(&mut self, wide: bool, reg: u8, offset: usize) {
        self.op_memory(0x8b, wide, reg, host::CONTEXT, offset as i32);
    }

    /// `mov dword [context + offset], value`.
    pub fn store_context_immediate(&mut self, offset: usize, value: u32) {
        self.op_memory(0xc7, false, 0, host::CONTEXT, offset as i32);
        self.bytes(&value.to_le_bytes());
    }

    /// `mov [context + offset], reg32`.
    pub fn store_context(&mut self, offset: usize, reg: u8) {
        self.op_memory(0x89, false, reg, host::CONTEXT, offset as i32);
    }

    /// `cmp reg32, [context + offset]`. Changes flags.
    pub fn compare_context(&mut self, reg: u8, offset: usize) {
        self.op_memory(0x3b, false, reg, host::CONTEXT, offset as i32);
    }

    /// `to` = `from` and `mask`, both of r8 to r15. Changes flags.
    pub fn and_into(&mut self, to: u8, from: u8, mask: u32) {
        self.mov32(to, from);
        self.bytes(&[0x41, 0x81, 0xe0 | (to & 7)]);
        self.bytes(&mask.to_le_bytes());
    }

    /// `add reg, value`, or `sub`; reg is of r8 to r11. Changes flags.
    pub fn add_immediate(&mut self, reg: u8, add: bool, value: u32) {
        let modrm = if add { 0xc0 } else { 0xe8 } | (reg & 7);
        match i8::try_from(value as i32) {
            Ok(short) => self.bytes(&[0x41, 0x83, modrm, short as u8]),
            Err(_) => {
                self.bytes(&[0x41, 0x81, modrm]);
                self.bytes(&value.to_le_bytes());
            }
        }
    }

    /// `lea to32, [to + from]`, both of r8 to r11: addition without flags.
    pub fn lea32_sum(&mut self, to: u8, from: u8) {
        self.bytes(&[0x47, 0x8d, 0x04 | (to & 7) << 3, (to & 7) << 3 | (from & 7)]);
    }

    /// r9d = host flags and `mask`, by way of r8 and r10, leaving flags alone.
    pub fn read_flags(&mut self, mask: u32) {
        // pushfq; pop r8
        self.bytes(&[0x9c, 0x41, 0x58]);
        self.mov_immediate(10, mask);
        // pext r9d, r8d, r10d; pdep r9d, r9d, r10d
        self.bytes(&[0xc4, 0x42, 0x3a, 0xf5, 0xca, 0xc4, 0x42, 0x33, 0xf5, 0xca]);
    }

    /// Host flags = r8, which holds arithmetic flags and DF alone.
    pub fn write_flags(&mut self) {
        // push r8; popfq
        self.bytes(&[0x41, 0x50, 0x9d]);
    }

    /// EDX:EAX = the host's time-stamp counter plus the context's field at `offset`, without flags.
    pub fn read_time_stamp(&mut self, with_aux: bool, offset: usize) {
        self.bytes(if with_aux { &[0x0f, 0x01, 0xf9] } else { &[0x0f, 0x31] });
        // rorx rdx, rdx, 32; lea rax, [rax + rdx]
        self.bytes(&[0xc4, 0xe3, 0xfb, 0xf0, 0xd2, 32, 0x48, 0x8d, 0x04, 0x10]);
        self.load_context(true, 8, offset);
        // lea rax, [rax + r8]; rorx rdx, rax, 32
        self.bytes(&[0x4a, 0x8d, 0x04, 0x00, 0xc4, 0xe3, 0xfb, 0xf0, 0xd0, 32]);
        self.mov32(0, 0);
        self.mov32(2, 2);
    }

    /// r9 = host address of the window for the quarter that the linear address in `linear` lies in.
    pub fn load_quarter(&mut self, linear: u8) {
        // shrx r9d, linear, r13d: VEX.LZ.F2.0F38.W0 F7 /r, with rm = linear and vvvv = r13.
        let b = if linear >= 8 { 0 } else { 0x20 };
        self.bytes(&[0xc4, 0x42 | b, (!host::TRIPWIRE & 0xf) << 3 | 0x03, 0xf7, 0xc8 | (linear & 7)]);
        // mov r9, [r15 + r9*8 + quarters]
        self.bytes(&[0x4f, 0x8b, 0x8c, 0xcf]);
        self.bytes(&(offset_of!(Context, quarters) as u32).to_le_bytes());
    }

    /// Goes to what the indirect-branch table holds for `eip`, which r8d is set to.
    pub fn by_table(&mut self, eip: u32) {
        self.mov_immediate(8, eip);
        self.load_context(true, 10, offset_of!(Context, branches));
        // jmp [r10 + entry*8]
        self.bytes(&[0x41, 0xff, 0x82 | (Transfer::Jump as u8) << 3]);
        self.bytes(&(8 * index(eip) as u32).to_le_bytes());
    }

    /// Goes on only if r8d is `eip`; otherwise faults, with all state in place.
    pub fn expect_eip_or_fault(&mut self, eip: u32) {
        self.lea32_or_mov(9, 8, eip.wrapping_neg() as i32);
        self.trip(9);
    }

    /// Goes on only if r11d is `value`; otherwise faults, to leave for `eip`.
    pub fn expect_value_or_fault(&mut self, value: u32, eip: u32) {
        self.mov_immediate(8, eip);
        self.lea32_or_mov(9, 11, value.wrapping_neg() as i32);
        self.trip(9);
    }

    /// `movzx r10d, word [difference + r13]`: see [`super::tripwire`].
    fn trip(&mut self, difference: u8) {
        self.bytes(&[0x47, 0x0f, 0xb7, 0x14, (host::TRIPWIRE & 7) << 3 | difference & 7]);
    }

    /// Goes on only if r8d is `eip`; otherwise to the branch at `elsewhere`. A compare would be shorter, but whatever
    /// r8d means instead may still need the flags.
    pub fn expect_eip(&mut self, eip: u32, elsewhere: u64) {
        self.mov64(10, 1);
        match eip {
            0 => self.mov32(1, 8),
            _ => self.lea32(1, 8, eip.wrapping_neg() as i32),
        }
        self.skip_if_rcx_zero(8);
        self.mov64(1, 10);
        self.jump(elsewhere);
        self.mov64(1, 10);
    }

    /// `call rel32`, to be fixed up: leaves the address of the next byte on the return stack.
    pub fn call_later(&mut self) -> Fixup {
        self.code.push(0xe8);
        self.pending()
    }

    /// Goes to what the indirect-branch table holds for the guest EIP in r8d; the address of the code that does, which
    /// [`by_chart`] can stand for.
    pub fn indirect(&mut self, transfer: Transfer) -> u64 {
        let at = self.origin + self.code.len() as u64;
        self.bytes(&by_table(transfer));
        at
    }

    /// `jmp rel32` to an absolute address.
    pub fn jump(&mut self, target: u64) {
        self.code.push(0xe9);
        self.relative(target);
    }

    /// `jcc rel32` with condition code `cc` (0 to 15), to be fixed up.
    pub fn jump_if(&mut self, cc: u8) -> Fixup {
        self.bytes(&[0x0f, 0x80 | cc]);
        self.pending()
    }

    /// `jmp rel32`, to be fixed up.
    pub fn jump_later(&mut self) -> Fixup {
        self.code.push(0xe9);
        self.pending()
    }

    /// `jrcxz` over the next `skip` bytes.
    pub fn skip_if_rcx_zero(&mut self, skip: u8) {
        self.bytes(&[0xe3, skip]);
    }

    fn pending(&mut self) -> Fixup {
        self.bytes(&[0; 4]);
        Fixup(self.code.len() - 4)
    }

    fn relative(&mut self, target: u64) {
        let next = self.origin + self.code.len() as u64 + 4;
        self.bytes(&(target.wrapping_sub(next) as u32).to_le_bytes());
    }

    /// Makes the branch of `fixup` go to the next byte.
    pub fn land(&mut self, fixup: Fixup) {
        let displacement = (self.code.len() - fixup.0 - 4) as u32;
        self.code[fixup.0..fixup.0 + 4].copy_from_slice(&displacement.to_le_bytes());
    }

    /// Executable address of the displacement of `fixup`.
    pub fn address_of(&self, fixup: Fixup) -> u64 {
        self.origin + fixup.0 as u64
    }
}
