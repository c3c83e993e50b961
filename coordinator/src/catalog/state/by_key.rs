//! Named things as a list; their names are in them.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::catalog::command::{Key, Named};

pub(super) fn serialize<S: Serializer, T: Serialize>(
    map: &BTreeMap<Key, T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(map.values())
}

pub(super) fn deserialize<'de, D, T>(deserializer: D) -> Result<BTreeMap<Key, T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Named,
{
    let things = Vec::<T>::deserialize(deserializer)?;
    Ok(things.into_iter().map(|thing| (thing.key(), thing)).collect())
}
