//! Conversions of what a framework waits for.

use crate::common::same_enum;
use crate::error::at;
use crate::{WireError, v1};
use tessera_types::{Constraint, Predicate, ResourceRequest, Selector, validate_requests};

/// A predicate without its values.
#[derive(Clone, Copy)]
enum Kind {
    Exists,
    NotExists,
    Equals,
    NotEquals,
    OneOf,
    NoneOf,
    Matches,
    NotMatches,
}

same_enum!(Kind, Predicate, "constraint.predicate", {
    Exists = Exists,
    NotExists = NotExists,
    Equals = Equals,
    NotEquals = NotEquals,
    OneOf = OneOf,
    NoneOf = NoneOf,
    Matches = Matches,
    NotMatches = NotMatches,
});

impl From<&Constraint> for v1::Constraint {
    fn from(constraint: &Constraint) -> Self {
        let kind = match &constraint.predicate {
            Predicate::Exists => Kind::Exists,
            Predicate::NotExists => Kind::NotExists,
            Predicate::Equals(_) => Kind::Equals,
            Predicate::NotEquals(_) => Kind::NotEquals,
            Predicate::OneOf(_) => Kind::OneOf,
            Predicate::NoneOf(_) => Kind::NoneOf,
            Predicate::Matches(_) => Kind::Matches,
            Predicate::NotMatches(_) => Kind::NotMatches,
        };
        Self {
            attribute: match &constraint.selector {
                Selector::Hostname => None,
                Selector::Attribute(name) => Some(name.clone()),
            },
            predicate: v1::Predicate::from(kind).into(),
            values: constraint.predicate.texts().to_vec(),
        }
    }
}

impl TryFrom<v1::Constraint> for Constraint {
    type Error = WireError;
    fn try_from(constraint: v1::Constraint) -> Result<Self, WireError> {
        let kind = Kind::try_from(constraint.predicate())?;
        let values = constraint.values;
        let wrong = || WireError::new("constraint.values", "as many as the predicate takes");
        let none = |predicate| if values.is_empty() { Ok(predicate) } else { Err(wrong()) };
        let one = |predicate: fn(String) -> Predicate| match values.as_slice() {
            [text] => Ok(predicate(text.clone())),
            _ => Err(wrong()),
        };
        let predicate = match kind {
            Kind::Exists => none(Predicate::Exists),
            Kind::NotExists => none(Predicate::NotExists),
            Kind::Equals => one(Predicate::Equals),
            Kind::NotEquals => one(Predicate::NotEquals),
            Kind::OneOf => Ok(Predicate::OneOf(values.clone())),
            Kind::NoneOf => Ok(Predicate::NoneOf(values.clone())),
            Kind::Matches => one(Predicate::Matches),
            Kind::NotMatches => one(Predicate::NotMatches),
        };
        let selector = constraint.attribute.map_or(Selector::Hostname, Selector::Attribute);
        Ok(Self { selector, predicate: predicate? })
    }
}

impl From<&ResourceRequest> for v1::ResourceRequest {
    fn from(request: &ResourceRequest) -> Self {
        Self {
            id: request.id.clone(),
            resources: Some((&request.resources).into()),
            count: request.count,
            constraints: request.constraints.iter().map(Into::into).collect(),
            revocable: request.revocable,
        }
    }
}

impl TryFrom<v1::ResourceRequest> for ResourceRequest {
    type Error = WireError;
    fn try_from(request: v1::ResourceRequest) -> Result<Self, WireError> {
        let constraints = request.constraints.into_iter().map(TryInto::try_into);
        Ok(Self {
            id: request.id,
            resources: request.resources.unwrap_or_default().into(),
            count: request.count,
            constraints: constraints.collect::<Result<_, WireError>>()?,
            revocable: request.revocable,
        })
    }
}

impl From<&[ResourceRequest]> for v1::ResourceRequests {
    fn from(requests: &[ResourceRequest]) -> Self {
        Self { requests: requests.iter().map(Into::into).collect() }
    }
}

impl TryFrom<v1::ResourceRequests> for Vec<ResourceRequest> {
    type Error = WireError;
    /// Also checks the rules of [`validate_requests`].
    fn try_from(requests: v1::ResourceRequests) -> Result<Self, WireError> {
        let requests = requests.requests.into_iter().map(TryInto::try_into);
        let requests = requests.collect::<Result<Self, WireError>>()?;
        validate_requests(&requests).map_err(at("requests"))?;
        Ok(requests)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;
    use tessera_types::{Quantities, Resources};

    fn requests() -> Vec<ResourceRequest> {
        let text = || "t".to_owned();
        let predicates = [
            Predicate::Exists,
            Predicate::NotExists,
            Predicate::Equals(text()),
            Predicate::NotEquals(String::new()),
            Predicate::OneOf(vec![text(), text()]),
            Predicate::NoneOf(vec![]),
            Predicate::Matches("*".into()),
            Predicate::NotMatches("?".into()),
        ];
        let constraint = |predicate| Constraint { selector: Selector::Attribute("zone".into()), predicate };
        let mut constraints: Vec<_> = predicates.into_iter().map(constraint).collect();
        constraints[0].selector = Selector::Hostname;
        let quantities = Quantities { cpus_milli: 1000, mem_mib: 64, disk_mib: 0 };
        let resources = Resources::of(quantities).with("gpus", 1000);
        let big = ResourceRequest { id: "big".into(), resources, count: 3, constraints, revocable: true };
        let small = ResourceRequest { id: "small".into(), resources: quantities.into(), constraints: vec![], ..big.clone() };
        vec![big, small]
    }

    #[test]
    fn requests_round_trip_through_bytes_that_are_fixed() {
        let bytes = v1::ResourceRequests::from(requests().as_slice()).encode_to_vec();
        assert_eq!(v1::ResourceRequests::decode(&*bytes).unwrap().try_into(), Ok(requests()));
        assert_eq!(
            tessera_types::Digest::of(&bytes).hex(),
            "0084ac4ee735ef3c494f8c468bd1eff376b7a94c11a38667e1b858bdc83aeee7",
            "rows and commands of this version would no longer be read alike"
        );
    }

    #[test]
    fn bad_requests_are_refused_by_field() {
        type Edit = fn(&mut v1::ResourceRequests);
        let cases: [(&str, Edit); 5] = [
            ("requests", |r| r.requests[1].id = "big".into()),
            ("requests", |r| r.requests[0].count = 0),
            ("requests", |r| r.requests[0].resources = None),
            ("constraint.values", |r| r.requests[0].constraints[2].values.clear()),
            ("constraint.predicate", |r| r.requests[0].constraints[0].predicate = 0),
        ];
        for (field, edit) in cases {
            let mut bad = v1::ResourceRequests::from(requests().as_slice());
            edit(&mut bad);
            assert_eq!(Vec::<ResourceRequest>::try_from(bad).unwrap_err().field, field);
        }
    }
}
