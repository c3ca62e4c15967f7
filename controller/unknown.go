package controller

import (
	"bytes"
	"encoding/json"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"bulkhead/fault"
)

// A field that the API does not know is a slip of the pen or a promise that nobody keeps: a
// misspelled limit would be no limit. So every body is compared with the type that it is
// decoded into, objects inside objects too.

// ignoredFields are the unknown fields that are accepted, by the type of their object: what
// real clients send although it asks for nothing here.
var ignoredFields = map[reflect.Type][]string{
	// Clients repeat in a body what the path says, or what only they read.
	reflect.TypeFor[machineInput](): {"id", "app_id", "org_slug", "timeout", "requires_replacement"},
}

// checkFields refuses fields of the JSON value raw that the type of v does not have, and names
// their path, which begins with at. raw has been decoded into v before.
func checkFields(at string, raw []byte, v any) error {
	path := unknownField(at, raw, reflect.TypeOf(v))
	if path == "" {
		return nil
	}
	return fault.New(fault.Invalid, "%s is not a field of this API; docs/api.md lists them", fault.Clip(path))
}

// decodesItself are types whose JSON is not that of their Go fields.
var decodesItself = reflect.TypeFor[json.Unmarshaler]()

// unknownField returns the path of the first field of raw that has no place in t, or "".
// A null is no value, and so fits everywhere.
func unknownField(at string, raw []byte, t reflect.Type) string {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 || raw[0] != '{' && raw[0] != '[' {
		return ""
	}
	for t.Kind() == reflect.Pointer && !t.Implements(decodesItself) {
		t = t.Elem()
	}
	if t.Implements(decodesItself) || reflect.PointerTo(t).Implements(decodesItself) {
		return ""
	}
	switch t.Kind() {
	case reflect.Struct:
		return unknownMember(at, raw, t)
	case reflect.Map:
		var all map[string]json.RawMessage
		json.Unmarshal(raw, &all)
		for _, name := range sortedNames(all) {
			if path := unknownField(join(at, name), all[name], t.Elem()); path != "" {
				return path
			}
		}
	case reflect.Slice, reflect.Array:
		var all []json.RawMessage
		json.Unmarshal(raw, &all)
		for i, e := range all {
			if path := unknownField(at+"["+strconv.Itoa(i)+"]", e, t.Elem()); path != "" {
				return path
			}
		}
	}
	return ""
}

// unknownMember is unknownField for an object and a struct.
func unknownMember(at string, raw []byte, t reflect.Type) string {
	var all map[string]json.RawMessage
	json.Unmarshal(raw, &all)
	fields := map[string]reflect.Type{}
	jsonFields(t, fields)
	for _, name := range sortedNames(all) {
		typ, known := fields[strings.ToLower(name)]
		switch {
		case known:
			if path := unknownField(join(at, name), all[name], typ); path != "" {
				return path
			}
		case string(all[name]) == "null" || slices.Contains(ignoredFields[t], name):
		default:
			return join(at, name)
		}
	}
	return ""
}

// jsonFields collects the names that encoding/json reads into t, in lower case, since it
// ignores case too.
func jsonFields(t reflect.Type, into map[string]reflect.Type) {
	for f := range t.Fields() {
		tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if tag == "-" {
			continue
		}
		if f.Anonymous && tag == "" {
			inner := f.Type
			if inner.Kind() == reflect.Pointer {
				inner = inner.Elem()
			}
			if inner.Kind() == reflect.Struct {
				jsonFields(inner, into)
				continue
			}
		}
		if !f.IsExported() {
			continue
		}
		if tag == "" {
			tag = f.Name
		}
		into[strings.ToLower(tag)] = f.Type
	}
}

func join(at, name string) string {
	if at == "" {
		return name
	}
	return at + "." + name
}

func sortedNames(m map[string]json.RawMessage) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
