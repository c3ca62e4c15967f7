package deployfile

import (
	"fmt"
	"math"
	"reflect"
	"sort"
	"strconv"
	"time"

	"github.com/pelletier/go-toml/v2"

	"bulkhead/fault"
)

// binder copies a decoded document into Config, by the toml tags of its fields,
// and collects everything that does not fit.
type binder struct {
	file      string
	positions map[string]Position
	errors    []Note
	warnings  []Note
}

// errorf notes a mistake. One place gets one: the first is the cause of the others.
func (b *binder) errorf(path, format string, args ...any) {
	n := Note{Pos: at(b.positions, b.file, path), Msg: fmt.Sprintf(format, args...)}
	for _, e := range b.errors {
		if e.Pos == n.Pos && n.Pos.Line > 0 {
			return
		}
	}
	b.errors = append(b.errors, n)
}

func (b *binder) warnf(path, format string, args ...any) {
	b.warnings = append(b.warnings, Note{Pos: at(b.positions, b.file, path), Msg: fmt.Sprintf(format, args...)})
}

// table binds one table to the struct that dst points to.
func (b *binder) table(path string, raw map[string]any, dst any) {
	v := reflect.ValueOf(dst).Elem()
	fields := map[string]reflect.Value{}
	var names []string
	for i := 0; i < v.NumField(); i++ {
		if name := v.Type().Field(i).Tag.Get("toml"); name != "" {
			fields[name] = v.Field(i)
			names = append(names, name)
		}
	}
	keys := make([]string, 0, len(raw))
	for k := range raw {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		f, ok := fields[k]
		if !ok {
			if !b.leftOut(path, k, raw[k], names) {
				b.unknown(path, k, names)
			}
			continue
		}
		b.value(join(path, k), raw[k], f)
	}
}

// unknown reports a key that the grammar does not have, and the nearest one it has.
func (b *binder) unknown(path, key string, names []string) {
	where := "at the top level"
	if path != "" {
		where = "in [" + path + "]"
	}
	b.errorf(join(path, key), "unknown key %q %s%s", key, where, didYouMean(key, names))
}

// didYouMean names the nearest key, "" where none is near.
func didYouMean(key string, names []string) string {
	if n := fault.Nearest(key, names); n != "" {
		return fmt.Sprintf("; did you mean %q?", n)
	}
	return ""
}

// value binds one value to dst.
func (b *binder) value(path string, raw any, dst reflect.Value) {
	if dst.CanAddr() {
		if c, ok := dst.Addr().Interface().(interface{ bind(any) error }); ok {
			if err := c.bind(raw); err != nil {
				b.errorf(path, "%s %s", path, err)
			}
			return
		}
	}
	switch dst.Kind() {
	case reflect.Pointer:
		dst.Set(reflect.New(dst.Type().Elem()))
		b.value(path, raw, dst.Elem())
	case reflect.Struct:
		if c, ok := dst.Addr().Interface().(*Concurrency); ok {
			if text, ok := raw.(string); ok {
				if err := c.pair(text); err != nil {
					b.errorf(path, "%s %s", path, err)
				}
				return
			}
		}
		m, ok := raw.(map[string]any)
		if !ok {
			b.wrongType(path, raw, "a table")
			return
		}
		b.table(path, m, dst.Addr().Interface())
	case reflect.Slice:
		b.list(path, raw, dst)
	case reflect.Map:
		b.keyed(path, raw, dst)
	case reflect.String:
		s, ok := raw.(string)
		if !ok {
			b.wrongType(path, raw, "a string")
			return
		}
		dst.SetString(s)
	case reflect.Bool:
		v, ok := raw.(bool)
		if !ok {
			b.wrongType(path, raw, "true or false")
			return
		}
		dst.SetBool(v)
	case reflect.Int:
		n, err := wholeNumber(raw)
		if err != nil {
			b.wrongType(path, raw, "a whole number")
			return
		}
		dst.SetInt(n)
	case reflect.Interface:
		dst.Set(reflect.ValueOf(raw))
	}
}

// list binds a list. One table stands for a list of one, as in [vm] for [[vm]].
func (b *binder) list(path string, raw any, dst reflect.Value) {
	elem := dst.Type().Elem()
	table := elem.Kind() == reflect.Struct
	if m, ok := raw.(map[string]any); ok && table {
		if len(m) == 0 {
			return // a heading with nothing below it
		}
		one := reflect.New(elem)
		b.table(path, m, one.Interface())
		dst.Set(reflect.Append(dst, one.Elem()))
		return
	}
	if s, ok := raw.(string); ok && elem.Kind() == reflect.String {
		if s != "" {
			dst.Set(reflect.Append(dst, reflect.ValueOf(s).Convert(elem)))
		}
		return
	}
	rv := reflect.ValueOf(raw)
	if !rv.IsValid() || rv.Kind() != reflect.Slice {
		want := "a list of strings"
		if table {
			want = "a list of tables"
		}
		b.wrongType(path, raw, want)
		return
	}
	out := reflect.MakeSlice(dst.Type(), rv.Len(), rv.Len())
	for i := 0; i < rv.Len(); i++ {
		b.value(fmt.Sprintf("%s[%d]", path, i), rv.Index(i).Interface(), out.Index(i))
	}
	dst.Set(out)
}

// keyed binds a table whose keys the developer chooses.
func (b *binder) keyed(path string, raw any, dst reflect.Value) {
	m, ok := raw.(map[string]any)
	if !ok {
		b.wrongType(path, raw, "a table")
		return
	}
	out := reflect.MakeMap(dst.Type())
	for k, v := range m {
		e := reflect.New(dst.Type().Elem()).Elem()
		b.value(join(path, k), v, e)
		out.SetMapIndex(reflect.ValueOf(k), e)
	}
	dst.Set(out)
}

func (b *binder) wrongType(path string, raw any, want string) {
	b.errorf(path, "%s must be %s, not %s", path, want, typeName(raw))
}

// typeName names the TOML type of a decoded value.
func typeName(raw any) string {
	switch raw.(type) {
	case string:
		return "a string"
	case bool:
		return "a boolean"
	case int64:
		return "a whole number"
	case float64:
		return "a fraction"
	case map[string]any:
		return "a table"
	case []any, []map[string]any:
		return "a list"
	}
	return "a date"
}

// wholeNumber reads a number that the file may also give as a string or as a fraction of
// which nothing is left: "8080", 8080.0. An empty string is 0.
func wholeNumber(raw any) (int64, error) {
	switch v := raw.(type) {
	case int64:
		return v, nil
	case float64:
		if v == math.Trunc(v) && math.Abs(v) < 1<<53 {
			return int64(v), nil
		}
	case string:
		if v == "" {
			return 0, nil
		}
		return strconv.ParseInt(v, 10, 64)
	}
	return 0, strconv.ErrSyntax
}

// Command is a command line: a list of arguments, or a string that is split as a shell does.
type Command []string

func (c *Command) bind(raw any) error {
	switch v := raw.(type) {
	case string:
		ws, err := words(v)
		*c = ws
		return err
	case []any:
		for _, e := range v {
			s, ok := e.(string)
			if !ok {
				return fmt.Errorf("must be a list of strings; one entry is %s", typeName(e))
			}
			*c = append(*c, s)
		}
		return nil
	}
	return fmt.Errorf("must be a list of strings, not %s", typeName(raw))
}

// Headers are the headers of a check: a table, or a list of tables with name and value.
type Headers map[string]string

func (h *Headers) bind(raw any) error {
	*h = Headers{}
	for _, t := range tables(raw) {
		name, named := t["name"].(string)
		if value, ok := t["value"].(string); ok && named && len(t) == 2 {
			(*h)[name] = value
			continue
		}
		for k, v := range t {
			var text Text
			if err := text.bind(v); err != nil {
				return fmt.Errorf("has the header %s, which %w", k, err)
			}
			(*h)[k] = string(text)
		}
	}
	if tables(raw) == nil {
		return fmt.Errorf("must be a table, not %s", typeName(raw))
	}
	return nil
}

// Seconds is a duration that the file gives as a string ("30s") or as a number of
// seconds. Set tells 0 from absent.
type Seconds struct {
	D   time.Duration
	Set bool
}

func (s *Seconds) bind(raw any) error {
	s.Set = true
	switch v := raw.(type) {
	case float64:
		if v < 0 || v > 1<<31 {
			return fmt.Errorf("is %v; it must be a number of seconds", v)
		}
		s.D = time.Duration(v * float64(time.Second))
	case int64:
		if v < 0 || v > 1<<31 {
			return fmt.Errorf("is %d; it must be a number of seconds", v)
		}
		s.D = time.Duration(v) * time.Second
	case string:
		if v == "" {
			s.Set = false
			return nil
		}
		d, err := time.ParseDuration(v)
		if n, nerr := strconv.Atoi(v); nerr == nil {
			d, err = time.Duration(n)*time.Second, nil
		}
		if err != nil || d < 0 {
			return fmt.Errorf("is %q; it must be a duration such as \"30s\" or a number of seconds", v)
		}
		s.D = d
	default:
		return fmt.Errorf("must be a duration such as \"30s\" or a number of seconds, not %s", typeName(raw))
	}
	return nil
}

// Text is a string that the file may also give as a number or a boolean, as in
// [env] and in sizes.
type Text string

func (t *Text) bind(raw any) error {
	switch v := raw.(type) {
	case string:
		*t = Text(v)
	case int64:
		*t = Text(strconv.FormatInt(v, 10))
	case float64:
		*t = Text(strconv.FormatFloat(v, 'g', -1, 64))
	case bool:
		*t = Text(strconv.FormatBool(v))
	case time.Time:
		*t = Text(v.Format(time.RFC3339Nano))
	case toml.LocalDate, toml.LocalTime, toml.LocalDateTime:
		*t = Text(fmt.Sprint(v))
	default:
		return fmt.Errorf("must be a string, not %s", typeName(raw))
	}
	return nil
}

// StopMode is auto_stop_machines: a word or a boolean; "" is absent.
type StopMode string

func (m *StopMode) bind(raw any) error {
	switch v := raw.(type) {
	case bool:
		*m = "off"
		if v {
			*m = "stop"
		}
		return nil
	case string:
		switch v {
		case "", "off", "stop", "suspend":
			*m = StopMode(v)
			return nil
		case "true", "false":
			return m.bind(v == "true")
		}
		return fmt.Errorf("is %q; it must be \"off\", \"stop\", \"suspend\" or a boolean", v)
	}
	return fmt.Errorf("must be \"off\", \"stop\", \"suspend\" or a boolean, not %s", typeName(raw))
}

// Share is max_unavailable: a number of Machines (1 or more) or a fraction of them.
type Share float64

func (s *Share) bind(raw any) error {
	switch v := raw.(type) {
	case int64:
		*s = Share(v)
	case float64:
		*s = Share(v)
	case string:
		n, err := strconv.ParseFloat(v, 64)
		if err != nil {
			return fmt.Errorf("is %q; it must be a number", v)
		}
		*s = Share(n)
	default:
		return fmt.Errorf("must be a number, not %s", typeName(raw))
	}
	if *s <= 0 || (*s > 1 && float64(*s) != float64(int(*s))) {
		return fmt.Errorf("is %v; it must be a whole number of at least 1, or a fraction between 0 and 1", float64(*s))
	}
	return nil
}
