//! A condition on one argument of a system call: `[int] argN [& MASK] == VALUE` or `!= VALUE` or `<= VALUE`.
//!
//! `int` compares the low 32 bits, for arguments that the kernel takes as an int: what is above them is noise, and must
//! not decide. VALUE is a number, or `self` for the process's own id.

use std::str::FromStr;

use seccompiler::{SeccompCmpArgLen, SeccompCmpOp, SeccompCondition};

/// What conditions may refer to beside numbers, known when the filter is made.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// The process's id as it sees it itself.
    pub pid: u32,
}

/// A condition, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    argument: u8,
    int: bool,
    operation: Operation,
    value: Value,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Equal,
    NotEqual,
    AtMost,
    MaskedEqual(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    Number(u64),
    OwnPid,
}

impl FromStr for Condition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words: Vec<&str> = text.split_whitespace().collect();
        let int = words.first() == Some(&"int");
        if int {
            words.remove(0);
        }
        let (name, operation, value) = match words[..] {
            [name, "==", value] => (name, Operation::Equal, value),
            [name, "!=", value] => (name, Operation::NotEqual, value),
            [name, "<=", value] => (name, Operation::AtMost, value),
            [name, "&", mask, "==", value] => (name, Operation::MaskedEqual(number(mask)?), value),
            _ => return Err(format!("condition `{text}`: [int] argN [& MASK] == VALUE, != VALUE or <= VALUE")),
        };
        let argument = match name.strip_prefix("arg").map(u8::from_str) {
            Some(Ok(n)) if n < 6 => n,
            _ => return Err(format!("condition `{text}`: arguments are arg0 to arg5")),
        };
        let value = if value == "self" { Value::OwnPid } else { Value::Number(number(value)?) };
        Ok(Self { argument, int, operation, value })
    }
}

fn number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("`{text}` is no number"))
}

impl Condition {
    /// True if a call with these arguments meets it.
    pub fn holds(&self, arguments: [u64; 6], facts: Facts) -> bool {
        let keep = if self.int { u64::from(u32::MAX) } else { u64::MAX };
        let (argument, value) = (arguments[usize::from(self.argument)] & keep, self.value(facts) & keep);
        match self.operation {
            Operation::Equal => argument == value,
            Operation::NotEqual => argument != value,
            Operation::AtMost => argument <= value,
            Operation::MaskedEqual(mask) => argument & mask & keep == value & mask,
        }
    }

    /// As seccompiler has it.
    pub(super) fn compile(&self, facts: Facts) -> Result<SeccompCondition, seccompiler::BackendError> {
        let length = if self.int { SeccompCmpArgLen::Dword } else { SeccompCmpArgLen::Qword };
        let operation = match self.operation {
            Operation::Equal => SeccompCmpOp::Eq,
            Operation::NotEqual => SeccompCmpOp::Ne,
            Operation::AtMost => SeccompCmpOp::Le,
            Operation::MaskedEqual(mask) => SeccompCmpOp::MaskedEq(mask),
        };
        SeccompCondition::new(self.argument, length, operation, self.value(facts))
    }

    fn value(&self, facts: Facts) -> u64 {
        match self.value {
            Value::Number(number) => number,
            Value::OwnPid => u64::from(facts.pid),
        }
    }
}
