//! Which engine runs a machine.

use std::sync::Arc;

use super::translate::{Translator, TranslatorError};
use super::{Engine, interp};
use crate::mmu::GuestRam;

/// An engine that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No such name.
    #[error("there is no engine named `{0}`: choose auto, translate or interp")]
    Unknown(String),
    /// The translator cannot run here.
    #[error("starting the translator")]
    Translator(#[from] TranslatorError),
}

/// Makes the engine of this name for a processor over `ram`. `auto` is the translator where the host can run it.
pub fn create(name: &str, ram: &Arc<GuestRam>) -> Result<Box<dyn Engine>, EngineError> {
    match name {
        "interp" => Ok(Box::new(interp::Interpreter::new())),
        "translate" => Ok(Box::new(Translator::new(ram)?)),
        "auto" => match Translator::new(ram) {
            Ok(translator) => Ok(Box::new(translator)),
            Err(why) => {
                tracing::warn!("engine interp was chosen: {why}");
                Ok(Box::new(interp::Interpreter::new()))
            }
        },
        _ => Err(EngineError::Unknown(name.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_are_found_by_name() {
        let ram = Arc::new(GuestRam::new(1 << 20).unwrap());
        assert_eq!(create("interp", &ram).map(|e| e.name()).ok(), Some("interp"));
        assert!(create("auto", &ram).is_ok());
        assert!(matches!(create("kvm", &ram), Err(EngineError::Unknown(name)) if name == "kvm"));
    }
}
