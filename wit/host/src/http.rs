//! `wasi:http` as guests see it: every version 0.2 of it links, and every request is denied.
//!
//! Some toolchains put it into each component that they make, used or not. A guest may build a request,
//! of which nothing is kept; sending it is answered with `HTTP-request-denied`, and what could only be
//! answered with an untruth traps. Invariants: the answers depend on types alone, so that a replay gives
//! the same; nothing is held for a guest but its handles. This file must never reach a network.

use wasmtime::component::types::{ComponentFunc, ComponentItem, Type};
use wasmtime::component::{Component, InstancePre, Linker, LinkerInstance, Resource, ResourceAny, ResourceType, Val};
use wasmtime::{Result, StoreContextMut, bail};
use wasmtime_wasi::WasiView;
use wasmtime_wasi::p2::DynOutputStream;
use wasmtime_wasi::p2::pipe::SinkOutputStream;

/// Interfaces of `wasi:http` that a component may import.
const INTERFACES: [&str; 3] = ["types", "outgoing-handler", "incoming-handler"];
/// The case of `error-code` that says what happened.
const DENIED: &str = "HTTP-request-denied";

/// What stands behind every resource of `wasi:http`.
struct Nothing;

fn is_http(import: &str) -> bool {
    let Some((interface, version)) = import.strip_prefix("wasi:http/").and_then(|rest| rest.split_once('@'))
    else {
        return false;
    };
    INTERFACES.contains(&interface) && version.starts_with("0.2.")
}

/// Link a component, with what it imports of `wasi:http` beside what the linker has.
pub(crate) fn link<T: WasiView>(linker: &Linker<T>, component: &Component) -> Result<InstancePre<T>> {
    match denying(linker, component)? {
        Some(linker) => linker.instantiate_pre(component),
        None => linker.instantiate_pre(component),
    }
}

/// The linker with what this component imports of `wasi:http`; none when it imports nothing of it.
fn denying<T: WasiView>(linker: &Linker<T>, component: &Component) -> Result<Option<Linker<T>>> {
    let (engine, names) = (component.engine(), component.component_type());
    if !names.imports(engine).any(|(name, _)| is_http(name)) {
        return Ok(None);
    }
    let mut linker = linker.clone();
    // Interfaces name resources of others too, which stay what they are: imports come before their use.
    let mut known: Vec<ResourceType> = Vec::new();
    for (name, import) in names.imports(engine) {
        let ComponentItem::ComponentInstance(interface) = import.ty else { continue };
        let mut made = if is_http(name) { Some(linker.instance(name)?) } else { None };
        for (item, export) in interface.exports(engine) {
            match export.ty {
                ComponentItem::Resource(resource) if !known.contains(&resource) => {
                    known.push(resource);
                    if let Some(made) = &mut made {
                        made.resource(item, ResourceType::host::<Nothing>(), |_, _| Ok(()))?;
                    }
                }
                ComponentItem::ComponentFunc(_) => {
                    if let Some(made) = &mut made {
                        deny(made, name, item)?;
                    }
                }
                _ => {}
            }
        }
    }
    Ok(Some(linker))
}

fn deny<T: WasiView>(made: &mut LinkerInstance<'_, T>, interface: &str, item: &str) -> Result<()> {
    let name = format!("{interface} {item}");
    made.func_new(item, move |mut store, signature, given, results| {
        // Counts the call.
        store.data_mut().ctx();
        for value in given {
            give_up(&mut store, value)?;
        }
        answer(&mut store, &signature, results, &name)
    })
}

/// Let go of what the guest handed over.
fn give_up<T: WasiView>(store: &mut StoreContextMut<'_, T>, value: &Val) -> Result<()> {
    match value {
        Val::Resource(resource) => {
            resource.try_into_resource::<Nothing>(&mut *store)?;
        }
        Val::Option(Some(inner))
        | Val::Result(Ok(Some(inner)) | Err(Some(inner)))
        | Val::Variant(_, Some(inner)) => give_up(store, inner)?,
        Val::List(values) | Val::Tuple(values) | Val::FixedLengthList(values) => {
            for value in values {
                give_up(store, value)?;
            }
        }
        Val::Record(fields) => {
            for (_, value) in fields {
                give_up(store, value)?;
            }
        }
        // Holds no handle.
        _ => {}
    }
    Ok(())
}

fn answer<T: WasiView>(
    store: &mut StoreContextMut<'_, T>,
    signature: &ComponentFunc,
    results: &mut [Val],
    name: &str,
) -> Result<()> {
    let given = match signature.results().next() {
        Some(result) => empty(store, &result)?,
        // It would be as if it had been done.
        None => None,
    };
    match (given, results) {
        (Some(given), [result]) => {
            *result = given;
            Ok(())
        }
        _ => bail!("{name} is not granted: there is no network"),
    }
}

/// A value that says nothing, or that the request was denied.
fn empty<T: WasiView>(store: &mut StoreContextMut<'_, T>, wanted: &Type) -> Result<Option<Val>> {
    Ok(Some(match wanted {
        Type::Own(resource) if *resource == ResourceType::host::<Nothing>() => {
            Val::Resource(ResourceAny::try_from_resource(Resource::<Nothing>::new_own(0), store)?)
        }
        // Where the body of a request is written to.
        Type::Own(resource) if *resource == ResourceType::host::<DynOutputStream>() => {
            let nowhere: DynOutputStream = Box::new(SinkOutputStream);
            let stream = store.data_mut().ctx().table.push(nowhere)?;
            Val::Resource(ResourceAny::try_from_resource(stream, store)?)
        }
        Type::Bool => Val::Bool(false),
        Type::List(_) => Val::List(Vec::new()),
        Type::Option(_) => Val::Option(None),
        Type::Result(result) => {
            let error = result.err();
            if let Some(denied) = error.as_ref().and_then(denied) {
                return Ok(Some(Val::Result(Err(Some(Box::new(denied))))));
            }
            let Some(ok) = result.ok() else { return Ok(Some(Val::Result(Ok(None)))) };
            match empty(store, &ok)? {
                Some(ok) => Val::Result(Ok(Some(Box::new(ok)))),
                None => return Ok(None),
            }
        }
        _ => return Ok(None),
    }))
}

/// The error that says it, if this type has one.
fn denied(error: &Type) -> Option<Val> {
    let Type::Variant(variant) = error else { return None };
    let has = variant.cases().any(|case| case.name == DENIED && case.ty.is_none());
    has.then(|| Val::Variant(DENIED.to_owned(), None))
}
