//! What is to be simulated, as `tessera sim` says it.
//!
//! Invariants: a plan that was checked is within every bound here; a refusal names the field and the rule.
//! Must never open a file.

use crate::Refused;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use tessera_types::{FrameworkName, Quantities, RoleName};

/// Agents of one simulation: as many as a cluster may have.
const AGENTS_MAX: usize = 50_000;
/// Schedulers of one simulation: each has an instance in this process, with its memory.
const SCHEDULERS_MAX: usize = 64;
/// Longest time that is simulated: 30 days.
const FOR_MAX_MS: u64 = 30 * 86_400_000;
/// Faults in an hour: more than one in a second is no longer a cluster.
const FAULTS_MAX: u64 = 3_600;

/// One framework.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchedulerPlan {
    /// Its name.
    pub name: FrameworkName,
    /// Its role.
    pub role: RoleName,
    /// The file of its component.
    pub component: PathBuf,
    /// Its configuration.
    pub config: Vec<(String, String)>,
}

/// What each agent offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AgentSize {
    /// Thousandths of a core.
    pub cpus_milli: i64,
    /// MiB of memory.
    pub mem_mib: i64,
    /// MiB of disk.
    pub disk_mib: i64,
}

impl From<AgentSize> for Quantities {
    fn from(size: AgentSize) -> Self {
        Self { cpus_milli: size.cpus_milli, mem_mib: size.mem_mib, disk_mib: size.disk_mib }
    }
}

/// A whole simulation.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Who schedules.
    pub schedulers: Vec<SchedulerPlan>,
    /// Other components that tasks name: Wasm tasks and executors.
    pub components: Vec<PathBuf>,
    /// How many agents.
    pub agents: usize,
    /// What each of them offers.
    pub agent_size: AgentSize,
    /// For how long, in virtual time.
    pub for_ms: u64,
    /// Everything random follows from it.
    pub seed: u64,
    /// The file of the trace.
    pub trace: Option<PathBuf>,
    /// Agents that are lost in an hour, beside those of the trace.
    pub faults_per_hour: u64,
    /// The report is a JSON document.
    pub json: bool,
}

fn rule(field: &str, rule: &str) -> Refused {
    Refused::new(format!("{field}: {rule}"))
}

impl Plan {
    /// Read a plan and hold it against its rules.
    ///
    /// # Errors
    /// Which field breaks which rule.
    pub fn parse(text: &str) -> Result<Self, Refused> {
        let plan: Self = serde_json::from_str(text).map_err(|error| {
            Refused::new(format!("the plan cannot be read: {error}"))
                .hint("`tessera sim` writes it; `tessera` and tessera-simulate must be of one version")
        })?;
        if plan.schedulers.is_empty() || plan.schedulers.len() > SCHEDULERS_MAX {
            return Err(rule("--scheduler", &format!("1 to {SCHEDULERS_MAX} of them")));
        }
        for (at, scheduler) in plan.schedulers.iter().enumerate() {
            if plan.schedulers[..at].iter().any(|other| other.name == scheduler.name) {
                let name = &scheduler.name;
                return Err(rule("--scheduler", &format!("{name} is there twice; give each a name of its own")));
            }
        }
        if plan.agents == 0 || plan.agents > AGENTS_MAX {
            return Err(rule("--agents", &format!("1 to {AGENTS_MAX}")));
        }
        let size = Quantities::from(plan.agent_size);
        size.validate().map_err(|error| rule("--agent-size", &error.to_string()))?;
        if size.cpus_milli == 0 || size.mem_mib == 0 {
            return Err(rule("--agent-size", "some CPU and some memory, as in cpus=8,mem=32GiB"));
        }
        if plan.for_ms < 1_000 || plan.for_ms > FOR_MAX_MS {
            return Err(rule("--for", "1s to 30d"));
        }
        if plan.faults_per_hour > FAULTS_MAX {
            return Err(rule("--faults", &format!("at most {FAULTS_MAX} agents in an hour")));
        }
        Ok(plan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn plan() -> Value {
        json!({
            "schedulers": [{"name": "a", "role": "a", "component": "a.wasm", "config": [["k", "v"]]}],
            "components": [], "agents": 10, "agent_size": {"cpus_milli": 1000, "mem_mib": 1024, "disk_mib": 0},
            "for_ms": 60_000, "seed": 1, "trace": null, "faults_per_hour": 0, "json": false,
        })
    }

    #[test]
    fn plans_are_held_against_their_rules() {
        assert!(Plan::parse(&plan().to_string()).is_ok());
        let twice = json!([plan()["schedulers"][0], plan()["schedulers"][0]]);
        for (field, value, names) in [
            ("schedulers", json!([]), "--scheduler"),
            ("schedulers", twice, "twice"),
            ("agents", json!(0), "--agents"),
            ("agents", json!(50_001), "--agents"),
            ("agent_size", json!({"cpus_milli": 0, "mem_mib": 1, "disk_mib": 0}), "--agent-size"),
            ("agent_size", json!({"cpus_milli": -1, "mem_mib": 1, "disk_mib": 0}), "--agent-size"),
            ("for_ms", json!(999), "--for"),
            ("faults_per_hour", json!(3_601), "--faults"),
            ("surprise", json!(1), "surprise"),
        ] {
            let mut changed = plan();
            changed[field] = value;
            let refused = Plan::parse(&changed.to_string()).unwrap_err();
            assert!(refused.error.contains(names), "{field}: {refused:?}");
        }
    }
}
