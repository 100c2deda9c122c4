//! What is counted in a module or component before a compiler sees it.
//!
//! Invariants: one pass over the bytes, without building anything of them; it ends at the first limit that
//! is passed. This file must never accept anything: what it lets through is still to be validated.

use tessera_types::{EffectiveLimits, LimitName};
use tessera_wit_host::{LimitPassed, Unusable};
use wasmparser::{CompositeInnerType, Encoding, ExternalKind, FunctionBody, Parser, Payload};

/// Module name of WASI preview 1, as toolchains import it.
pub const PREVIEW1: &str = "wasi_snapshot_preview1";

/// What was counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Functions with a body, of all modules.
    pub functions: u64,
    /// It is a module by itself, not a component.
    pub is_module: bool,
    /// The module says which world it was made for.
    pub has_component_type: bool,
    /// The module imports WASI preview 1.
    pub imports_preview1: bool,
    /// The module is a program: it exports `_start`.
    pub is_program: bool,
}

/// A module as far as its functions need it.
#[derive(Default)]
struct Module {
    /// Parameters of each type; of those that are no functions, none.
    params: Vec<u64>,
    /// Type of each function with a body.
    functions: Vec<u32>,
    bodies: usize,
}

fn passed(name: LimitName, limits: &EffectiveLimits, found: u64, what: &str) -> Result<(), Unusable> {
    let max = limits.get(name);
    if found <= max {
        return Ok(());
    }
    let text = format!("{found} {what}, at most {max}");
    Err(Unusable::Limit(LimitPassed { name: name.row().name, text }))
}

/// Count, and hold against the limits of components.
///
/// # Errors
/// When a limit is passed, or the bytes are cut or damaged where they are looked at.
pub fn count(bytes: &[u8], limits: &EffectiveLimits) -> Result<Counted, Unusable> {
    let mut counted = Counted::default();
    let mut stack: Vec<Module> = Vec::new();
    let mut depth = 0_u32;
    for payload in Parser::new(0).parse_all(bytes) {
        let payload = payload.map_err(invalid)?;
        match &payload {
            Payload::Version { encoding, .. } => {
                counted.is_module |= depth == 0 && *encoding == Encoding::Module;
                depth += 1;
                stack.push(Module::default());
            }
            Payload::End(_) => {
                depth = depth.saturating_sub(1);
                stack.pop();
            }
            Payload::CodeSectionStart { count, .. } => {
                counted.functions += u64::from(*count);
                passed(LimitName::ComponentFunctions, limits, counted.functions, "functions")?;
            }
            _ if depth == 1 && counted.is_module => top_level(&payload, &mut counted)?,
            _ => {}
        }
        if let Some(module) = stack.last_mut() {
            module.see(&payload, limits)?;
        }
    }
    Ok(counted)
}

fn invalid(error: wasmparser::BinaryReaderError) -> Unusable {
    Unusable::Invalid(error.to_string())
}

/// What tells whether a module can be made into a component.
fn top_level(payload: &Payload<'_>, counted: &mut Counted) -> Result<(), Unusable> {
    match payload {
        Payload::CustomSection(section) => {
            counted.has_component_type |= section.name().starts_with("component-type");
        }
        Payload::ImportSection(imports) => {
            for import in imports.clone().into_imports() {
                counted.imports_preview1 |= import.map_err(invalid)?.module == PREVIEW1;
            }
        }
        Payload::ExportSection(exports) => {
            for export in exports.clone() {
                let export = export.map_err(invalid)?;
                counted.is_program |= export.name == "_start" && export.kind == ExternalKind::Func;
            }
        }
        _ => {}
    }
    Ok(())
}

impl Module {
    fn see(&mut self, payload: &Payload<'_>, limits: &EffectiveLimits) -> Result<(), Unusable> {
        match payload {
            Payload::TypeSection(groups) => {
                for group in groups.clone() {
                    let types = group.map_err(invalid)?.into_types();
                    self.params.extend(types.map(|ty| match ty.composite_type.inner {
                        CompositeInnerType::Func(function) => function.params().len() as u64,
                        _ => 0,
                    }));
                }
            }
            Payload::FunctionSection(functions) => {
                for ty in functions.clone() {
                    self.functions.push(ty.map_err(invalid)?);
                }
            }
            Payload::CodeSectionEntry(body) => self.see_body(body, limits)?,
            _ => {}
        }
        Ok(())
    }

    fn see_body(&mut self, body: &FunctionBody<'_>, limits: &EffectiveLimits) -> Result<(), Unusable> {
        let bytes = body.range().len() as u64;
        passed(LimitName::FunctionBytes, limits, bytes, "bytes in one function")?;
        let ty = self.functions.get(self.bodies).and_then(|ty| self.params.get(*ty as usize));
        self.bodies += 1;
        let mut locals = ty.copied().unwrap_or(0);
        for group in body.get_locals_reader().map_err(invalid)? {
            locals = locals.saturating_add(u64::from(group.map_err(invalid)?.0));
        }
        passed(LimitName::FunctionLocals, limits, locals, "locals in one function")
    }
}
