//! Conversions of what is said of roles.

use crate::v1;
use tessera_types::Amounts;

impl From<&Amounts> for v1::Amounts {
    fn from(amounts: &Amounts) -> Self {
        let amounts = amounts.iter().map(|(kind, amount)| v1::Amount { kind: kind.to_owned(), amount });
        Self { amounts: amounts.collect() }
    }
}

impl From<v1::Amounts> for Amounts {
    fn from(amounts: v1::Amounts) -> Self {
        Self(amounts.amounts.into_iter().map(|amount| (amount.kind, amount.amount)).collect())
    }
}
