//! What must be equal when a case has ended, and how a difference is told.

use std::fmt::Write;

use iced_x86::{Code, Instruction, Mnemonic};

use crate::generate::Generated;
use crate::oracle::Outcome;

/// RF differs: the processor sets it in the flags that a fault pushes.
const EFLAGS_COMPARED: u32 = !0x1_0000;
const NAMES: [&str; 8] = ["eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi"];

/// Named parts of an XSAVE area: offset, length, state component.
const PARTS: &[(&str, usize, usize, u8)] = &[
    ("fcw", 0, 2, 0),
    ("fsw", 2, 2, 0),
    ("ftw", 4, 1, 0),
    ("fop", 6, 2, 0),
    ("fip", 8, 8, 0),
    ("fdp", 16, 8, 0),
    ("mxcsr", 24, 4, 1),
    ("st0", 32, 10, 0),
    ("st1", 48, 10, 0),
    ("st2", 64, 10, 0),
    ("st3", 80, 10, 0),
    ("st4", 96, 10, 0),
    ("st5", 112, 10, 0),
    ("st6", 128, 10, 0),
    ("st7", 144, 10, 0),
    ("xmm0", 160, 16, 1),
    ("xmm1", 176, 16, 1),
    ("xmm2", 192, 16, 1),
    ("xmm3", 208, 16, 1),
    ("xmm4", 224, 16, 1),
    ("xmm5", 240, 16, 1),
    ("xmm6", 256, 16, 1),
    ("xmm7", 272, 16, 1),
    ("ymm0 high", 576, 16, 2),
    ("ymm1 high", 592, 16, 2),
    ("ymm2 high", 608, 16, 2),
    ("ymm3 high", 624, 16, 2),
    ("ymm4 high", 640, 16, 2),
    ("ymm5 high", 656, 16, 2),
    ("ymm6 high", 672, 16, 2),
    ("ymm7 high", 688, 16, 2),
];

/// Differences between what the processor did (`native`) and what the subject did, one line each.
pub fn differences(generated: &Generated, native: &Outcome, subject: &Outcome) -> Vec<String> {
    let mut all = Vec::new();
    let mut check = |name: &str, host: u64, ours: u64| {
        if host != ours {
            all.push(format!("{name}: expected {host:#x}, found {ours:#x}"));
        }
    };
    check("vector", native.vector.into(), subject.vector.into());
    check("error code", native.error.into(), subject.error.into());
    check("cr2", native.cr2.into(), subject.cr2.into());
    check("eip", native.eip.into(), subject.eip.into());
    let mask = EFLAGS_COMPARED & !generated.undefined;
    check("eflags", (native.eflags & mask).into(), (subject.eflags & mask).into());
    for (i, name) in NAMES.iter().enumerate().filter(|_| !popa_faults(generated, native)) {
        check(name, native.gpr[i].into(), subject.gpr[i].into());
    }
    registers(generated, native, subject, &mut all);
    if native.memory == subject.memory {
        return all;
    }
    if let Some(at) = (0..native.memory.len()).find(|i| native.memory[*i] != subject.memory[*i]) {
        let window = |m: &[u8]| hex(&m[at & !15..][..16]);
        all.push(format!("memory at +{at:#x}: expected {}, found {}", window(&native.memory), window(&subject.memory)));
    }
    all
}

fn registers(generated: &Generated, native: &Outcome, subject: &Outcome, all: &mut Vec<String>) {
    let high_is_free = native.vector == 14 && generated.instructions.iter().any(narrow_gather);
    for &(name, at, length, component) in PARTS {
        // A component that XSTATE_BV leaves out is in its initial state, but for MXCSR.
        let initial = native.xsave[512] >> component & 1 == 0 && name != "mxcsr";
        if !initial && native.xsave[at..at + length] == subject.xsave[at..at + length] {
            continue;
        }
        let mut host = native.xsave[at..at + length].to_vec();
        if initial {
            host.fill(0);
            if name == "fcw" {
                host.copy_from_slice(&0x37fu16.to_le_bytes());
            }
        }
        let mut ours = subject.xsave[at..at + length].to_vec();
        if name == "mxcsr" {
            let slack = mxcsr_slack(generated, native);
            (host[0], ours[0]) = (host[0] & !slack, ours[0] & !slack);
        }
        if host != ours && !(high_is_free && name.ends_with("high")) {
            all.push(format!("{name}: expected {}, found {}", hex(&host), hex(&ours)));
        }
    }
}

/// A gather of doublewords by quadword indices in a YMM register: when it faults, the upper halves of its destination and
/// mask are in the middle of being cleared.
fn narrow_gather(insn: &Instruction) -> bool {
    matches!(insn.code(), Code::VEX_Vpgatherqd_xmm_vm64y_xmm | Code::VEX_Vgatherqps_xmm_vm64y_xmm)
}

/// POPA ended by a fault has loaded some registers on this processor; the interpreter has loaded none. The manual
/// promises neither.
fn popa_faults(generated: &Generated, native: &Outcome) -> bool {
    native.vector != 3
        && generated.instructions.iter().any(|i| matches!(i.mnemonic(), Mnemonic::Popa | Mnemonic::Popad))
}

/// MXCSR flags that need not agree after #XM. An unmasked overflow or underflow reports the precision of a result with
/// an unbounded exponent, which the interpreter does not compute; the dot products stop at their first step that faults.
fn mxcsr_slack(generated: &Generated, native: &Outcome) -> u8 {
    const PE: u8 = 1 << 5;
    const OVERFLOW_UNDERFLOW: u8 = 3 << 3;
    use Mnemonic::{Dppd, Dpps, Vdppd, Vdpps};
    let dot = |i: &Instruction| matches!(i.mnemonic(), Dpps | Dppd | Vdpps | Vdppd);
    let masks = (u16::from_le_bytes([native.xsave[24], native.xsave[25]]) >> 7) as u8;
    match native.vector {
        // #DF where #XM found no stack.
        8 | 19 if generated.instructions.iter().any(dot) => 0x3f,
        8 | 19 if native.xsave[24] & !masks & OVERFLOW_UNDERFLOW != 0 => PE,
        _ => 0,
    }
}

/// Bytes as a little-endian number.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().rev().fold(String::new(), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}

/// What kind of difference it is: the instruction, and the names of what differs.
pub fn kind(generated: &Generated, differences: &[String]) -> String {
    let code = match &generated.instructions[..] {
        [one] => format!("{:?}", one.code()),
        all => format!("block of {}", all.len()),
    };
    let names = differences
        .iter()
        .map(|d| d.split(" at 0x").next().unwrap_or(d).split([':', '+']).next().unwrap_or(d))
        .filter(|d| *d != "setting");
    let names: Vec<&str> = names.collect();
    format!("{code}: {}", names.join(", "))
}

/// A case as text: its instructions and the state it started from.
pub fn describe(generated: &Generated) -> String {
    let case = &generated.case;
    let mut text = String::new();
    for insn in &generated.instructions {
        let _ = writeln!(text, "  {:08x} {insn} ({:?})", insn.ip32(), insn.code());
    }
    let _ = writeln!(text, "  bytes {:02x?}, eflags {:#x}", case.code, case.eflags);
    for (name, value) in NAMES.iter().zip(case.gpr) {
        let _ = write!(text, "  {name} {value:08x}");
    }
    let part = |at: usize, length| hex(&case.xsave[at..at + length]);
    let _ = write!(text, "\n  fcw {} fsw {} ftw {} mxcsr {}", part(0, 2), part(2, 2), part(4, 1), part(24, 4));
    for i in 0..8 {
        let _ = write!(
            text,
            "\n  st{i} {}  ymm{i} {} {}",
            part(32 + 16 * i, 10),
            part(576 + 16 * i, 16),
            part(160 + 16 * i, 16)
        );
    }
    text
}
