//! Underflow without loss of accuracy. Masked, it leaves no trace in MXCSR; unmasked, it is an exception (SDM vol. 1,
//! §4.9.1.5). Results are computed with everything masked, so it is found by looking at the result.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::area::XMM;
use crate::cpu::XsaveArea;

/// Width of an element and how many bytes of the destination are results.
struct Shape {
    element: usize,
    bytes: usize,
}

/// True if a result that `insn` just wrote, to its register in `area` or to `operand`, is denormal.
pub fn tiny(insn: &Instruction, area: &XsaveArea, operand: &[u8; 64]) -> bool {
    let Some(shape) = shape(insn) else { return false };
    let mut result = [0; 32];
    if insn.op0_kind() == OpKind::Memory {
        result[..shape.bytes].copy_from_slice(&operand[..shape.bytes]);
    } else {
        let r = insn.op0_register();
        let first = if r >= Register::YMM0 { Register::YMM0 } else { Register::XMM0 };
        let number = (r as usize).wrapping_sub(first as usize);
        debug_assert!(XMM + 16 * number < area.0.len());
        result = area.ymm(number & 7);
    }
    result[..shape.bytes].chunks_exact(shape.element).any(denormal)
}

/// True for dot products: a product or a partial sum may be tiny where no result shows it.
pub fn hidden(insn: &Instruction) -> bool {
    matches!(insn.mnemonic(), Mnemonic::Dpps | Mnemonic::Dppd | Mnemonic::Vdpps | Mnemonic::Vdppd)
}

/// Exponent zero, fraction not, in a half, single or double.
fn denormal(bytes: &[u8]) -> bool {
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    let value = u64::from_le_bytes(wide);
    let (exponent, fraction) = match bytes.len() {
        2 => (0x7c00, 0x03ff),
        4 => (0x7f80_0000, 0x007f_ffff),
        _ => (0x7ff0_0000_0000_0000, 0x000f_ffff_ffff_ffff),
    };
    value & exponent == 0 && value & fraction != 0
}

/// The shape of the result, for instructions that can underflow.
fn shape(insn: &Instruction) -> Option<Shape> {
    let name = format!("{:?}", insn.mnemonic()).to_lowercase();
    let name = name.strip_prefix('v').unwrap_or(&name);
    const ARITHMETIC: [&str; 10] = ["add", "sub", "mul", "div", "hadd", "hsub", "fmadd", "fmsub", "fnmadd", "fnmsub"];
    let vector = if insn.op0_register() >= Register::YMM0 { 32 } else { 16 };
    match insn.mnemonic() {
        Mnemonic::Vcvtps2ph => {
            let half = if insn.op1_register() >= Register::YMM0 { 16 } else { 8 };
            return Some(Shape { element: 2, bytes: half });
        }
        Mnemonic::Cvtpd2ps | Mnemonic::Vcvtpd2ps => return Some(Shape { element: 4, bytes: 16 }),
        Mnemonic::Cvtsd2ss | Mnemonic::Vcvtsd2ss => return Some(Shape { element: 4, bytes: 4 }),
        _ if !ARITHMETIC.iter().any(|a| name.starts_with(a)) => return None,
        _ => {}
    }
    Some(match name.get(name.len() - 2..)? {
        "ps" => Shape { element: 4, bytes: vector },
        "pd" => Shape { element: 8, bytes: vector },
        "ss" => Shape { element: 4, bytes: 4 },
        "sd" => Shape { element: 8, bytes: 8 },
        _ => return None,
    })
}
