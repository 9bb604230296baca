//! Memory type range registers (SDM vol. 3, §11.11). Stored and checked; memory has one type here, so nothing follows.

use super::Msrs;

const CAP: u32 = 0xfe;
const DEF_TYPE: u32 = 0x2ff;
const VARIABLE_FIRST: u32 = 0x200;
const VARIABLE_LAST: u32 = 0x20f;
/// Fixed ranges, in the order of `Msrs::mtrr_fixed`.
const FIXED: [u32; 11] = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
/// Eight variable ranges, fixed ranges, write combining.
const CAP_VALUE: u64 = 8 | 1 << 8 | 1 << 10;
/// Address bits of a variable range, with those of [`PHYSICAL_BITS`](crate::mmu::PHYSICAL_BITS).
const ADDRESS: u64 = ((1 << crate::mmu::PHYSICAL_BITS) - 1) & !0xfff;

/// RDMSR of an MTRR; None if `msr` is none.
pub(super) fn read(m: &Msrs, msr: u32) -> Option<u64> {
    match msr {
        CAP => Some(CAP_VALUE),
        DEF_TYPE => Some(m.mtrr_def_type),
        VARIABLE_FIRST..=VARIABLE_LAST => Some(m.mtrr_variable[(msr - VARIABLE_FIRST) as usize]),
        _ => fixed_index(msr).map(|i| m.mtrr_fixed[i]),
    }
}

/// WRMSR of an MTRR; None if `msr` is none or `value` has reserved types or bits.
pub(super) fn write(m: &mut Msrs, msr: u32, value: u64) -> Option<()> {
    match msr {
        DEF_TYPE if value & !0xcff == 0 && valid_type(value as u8) => m.mtrr_def_type = value,
        VARIABLE_FIRST..=VARIABLE_LAST => {
            let is_mask = msr & 1 != 0;
            let low = if is_mask { 1 << 11 } else { 0xff };
            if value & !(ADDRESS | low) != 0 || (!is_mask && !valid_type(value as u8)) {
                return None;
            }
            m.mtrr_variable[(msr - VARIABLE_FIRST) as usize] = value;
        }
        _ => {
            let i = fixed_index(msr)?;
            if !value.to_le_bytes().into_iter().all(valid_type) {
                return None;
            }
            m.mtrr_fixed[i] = value;
        }
    }
    Some(())
}

fn fixed_index(msr: u32) -> Option<usize> {
    FIXED.iter().position(|m| *m == msr)
}

/// UC, WC, WT, WP, WB (SDM vol. 3, table 11-8).
fn valid_type(t: u8) -> bool {
    matches!(t, 0 | 1 | 4..=6)
}
