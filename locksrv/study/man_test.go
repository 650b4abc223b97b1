package study

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"isr/locksrv/proto"
)

// TestMan: isr-study(5) has every metric with its views, every table, and every
// field of a report.
func TestMan(t *testing.T) {
	p, err := os.ReadFile("../../man/isr-study.5")
	if err != nil {
		t.Fatal(err)
	}
	words := make(map[string]bool)
	for _, w := range regexp.MustCompile(`[a-z0-9_]+`).FindAllString(string(p), -1) {
		words[w] = true
	}
	_, reports, _ := strings.Cut(string(p), ".Sh WHAT CLIENTS TELL")
	reports, _, _ = strings.Cut(reports, ".Sh WHAT PEOPLE TELL")
	var fields func(v reflect.Type)
	fields = func(v reflect.Type) {
		for i := range v.NumField() {
			f := v.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if !regexp.MustCompile(`\.(It )?Li (.* , )?` + name + `\b`).MatchString(reports) {
				t.Errorf("field %s of a report: not in isr-study(5)", name)
			}
			switch k := f.Type; {
			case k.Kind() == reflect.Slice:
				fields(k.Elem())
			case k.Kind() == reflect.Struct && k != timeType:
				fields(k)
			}
		}
	}
	fields(reflect.TypeFor[proto.Report]())
	_, metrics, _ := strings.Cut(string(p), ".Sh METRICS")
	for _, m := range Metrics {
		_, about, ok := strings.Cut(strings.ReplaceAll(metrics, `\&`, ""), "\n.It "+m.ID+"\n")
		about, _, _ = strings.Cut(about, "\n.It ")
		if !ok {
			t.Errorf("metric %s: not in isr-study(5)", m.ID)
		}
		for _, v := range m.Views {
			if !strings.Contains(about, v) {
				t.Errorf("metric %s: view %s is not there in isr-study(5)", m.ID, v)
			}
			if !strings.Contains(views, "CREATE VIEW "+v+" ") {
				t.Errorf("metric %s: there is no view %s", m.ID, v)
			}
		}
	}
	for _, name := range Tables() {
		if !words[name] {
			t.Errorf("table %s: not in isr-study(5)", name)
		}
	}
}
