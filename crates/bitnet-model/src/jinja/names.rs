//! The names of Jinja2's filters and tests.

/// Whether there is such a test.
pub(super) fn is_test(name: &str) -> bool {
    matches!(
        name,
        "boolean"
            | "callable"
            | "defined"
            | "divisibleby"
            | "eq"
            | "equalto"
            | "=="
            | "escaped"
            | "even"
            | "false"
            | "filter"
            | "float"
            | "ge"
            | ">="
            | "gt"
            | "greaterthan"
            | ">"
            | "in"
            | "integer"
            | "iterable"
            | "le"
            | "<="
            | "lower"
            | "lt"
            | "lessthan"
            | "<"
            | "mapping"
            | "ne"
            | "!="
            | "none"
            | "number"
            | "odd"
            | "sameas"
            | "sequence"
            | "string"
            | "test"
            | "true"
            | "undefined"
            | "upper"
    )
}

/// Whether there is such a filter.
pub(super) fn is_filter(name: &str) -> bool {
    works_on_items(name)
        || matches!(
            name,
            "abs"
                | "attr"
                | "capitalize"
                | "center"
                | "count"
                | "d"
                | "default"
                | "e"
                | "escape"
                | "filesizeformat"
                | "float"
                | "forceescape"
                | "format"
                | "indent"
                | "int"
                | "length"
                | "lower"
                | "pprint"
                | "random"
                | "replace"
                | "round"
                | "safe"
                | "string"
                | "striptags"
                | "title"
                | "tojson"
                | "trim"
                | "truncate"
                | "upper"
                | "urlencode"
                | "urlize"
                | "wordcount"
                | "wordwrap"
                | "xmlattr"
        )
}

/// Whether a filter works on the items of a value.
pub(super) fn works_on_items(name: &str) -> bool {
    matches!(
        name,
        "batch"
            | "dictsort"
            | "first"
            | "groupby"
            | "items"
            | "join"
            | "last"
            | "list"
            | "map"
            | "max"
            | "min"
            | "reject"
            | "rejectattr"
            | "reverse"
            | "select"
            | "selectattr"
            | "slice"
            | "sort"
            | "sum"
            | "unique"
    )
}
