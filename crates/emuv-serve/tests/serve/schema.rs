//! The part of JSON Schema that the document uses; a word that is not known here is a mistake. What a schema does not name
//! is a mistake too, so that nothing is published that is not described.

use serde_json::{Map, Value};

/// Says that a value is as a schema of the document says.
pub fn validate(document: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    check(document, schema, value, "")
}

fn check(document: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    let schema = schema.as_object().ok_or("a schema is an object")?;
    for (word, rule) in schema {
        match word.as_str() {
            "description" | "minimum" | "maximum" | "required" | "properties" | "additionalProperties" => {}
            "$ref" => {
                let path = rule.as_str().and_then(|path| path.strip_prefix('#')).ok_or("a $ref is of this document")?;
                let schema = document.pointer(path).ok_or_else(|| format!("there is no {path}"))?;
                check(document, schema, value, at)?;
            }
            "anyOf" => {
                let rules = rule.as_array().ok_or("anyOf is a list")?;
                let why: Vec<_> = rules.iter().map(|rule| check(document, rule, value, at)).collect();
                if why.iter().all(Result::is_err) {
                    return Err(format!("{at}: {why:?}"));
                }
            }
            "enum" => {
                if !rule.as_array().is_some_and(|values| values.contains(value)) {
                    return Err(format!("{at}: {value} is none of {rule}"));
                }
            }
            "items" => {
                for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                    check(document, rule, item, &format!("{at}/{index}"))?;
                }
            }
            "type" => {
                let types: Vec<_> = rule.as_array().cloned().unwrap_or_else(|| vec![rule.clone()]);
                if !types.iter().any(|kind| is_of(kind, value)) {
                    return Err(format!("{at}: {value} is not of type {rule}"));
                }
            }
            _ => return Err(format!("{at}: '{word}' is not known")),
        }
    }
    bounds(schema, value, at)?;
    members(document, schema, value, at)
}

fn is_of(kind: &Value, value: &Value) -> bool {
    match kind.as_str() {
        Some("null") => value.is_null(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_u64() || value.is_i64(),
        Some("number") => value.is_number(),
        Some("string") => value.is_string(),
        Some("array") => value.is_array(),
        Some("object") => value.is_object(),
        _ => false,
    }
}

fn bounds(schema: &Map<String, Value>, value: &Value, at: &str) -> Result<(), String> {
    let bound = |name: &str| schema.get(name).and_then(Value::as_f64);
    let Some(number) = value.as_f64() else { return Ok(()) };
    if bound("minimum").is_some_and(|least| number < least) || bound("maximum").is_some_and(|most| number > most) {
        return Err(format!("{at}: {number} is out of bounds"));
    }
    Ok(())
}

fn members(document: &Value, schema: &Map<String, Value>, value: &Value, at: &str) -> Result<(), String> {
    let (Some(members), Some(known)) = (value.as_object(), schema.get("properties").and_then(Value::as_object)) else {
        return Ok(());
    };
    for name in schema.get("required").and_then(Value::as_array).into_iter().flatten() {
        if !members.contains_key(name.as_str().unwrap_or_default()) {
            return Err(format!("{at}: {name} is missing"));
        }
    }
    for (name, value) in members {
        let schema = known.get(name).ok_or_else(|| format!("{at}: '{name}' is not described"))?;
        check(document, schema, value, &format!("{at}/{name}"))?;
    }
    Ok(())
}

#[test]
fn what_is_not_as_described_is_found() {
    let document = serde_json::json!({ "size": { "type": "integer", "minimum": 0 } });
    let schema = serde_json::json!({
        "type": "object", "required": ["a"],
        "properties": { "a": { "anyOf": [{ "$ref": "#/size" }, { "type": "null" }] }, "b": { "type": ["string", "null"] } },
    });
    for (text, is_right) in [
        (r#"{"a": 1}"#, true),
        (r#"{"a": null, "b": "x"}"#, true),
        (r#"{"b": "x"}"#, false),
        (r#"{"a": -1}"#, false),
        (r#"{"a": 1.5}"#, false),
        (r#"{"a": 1, "b": 2}"#, false),
        (r#"{"a": 1, "c": 2}"#, false),
        ("[]", false),
    ] {
        let value = serde_json::from_str(text).unwrap();
        assert_eq!(validate(&document, &schema, &value).is_ok(), is_right, "{text}");
    }
}
