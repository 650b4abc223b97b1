package proto

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"isr/store/parcel"
)

// fullReport has something in every field.
func fullReport() *Report {
	r := new(Report)
	fill(reflect.ValueOf(r).Elem())
	r.Format, r.ID = ReportFormat, strings.Repeat("0f", 16)
	r.Runs[0].Ended, r.Runs[0].Rungs[0].Kind, r.Runs[0].Images[0].Image, r.Sealed[0].Image = EndOff, RungHoard, "disk", "memory"
	return r
}

func fill(v reflect.Value) {
	if _, ok := v.Interface().(time.Time); ok {
		v.Set(reflect.ValueOf(time.Date(2026, 11, 26, 10, 0, 0, 0, time.UTC)))
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i))
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0))
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Float64:
		v.SetFloat(1.5)
	default:
		v.SetInt(7)
	}
}

func TestReport(t *testing.T) {
	want := fullReport()
	p, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseReport(p)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	// What is not described is not kept.
	got, err = ParseReport([]byte(strings.Replace(string(p), `"machine":{`, `"browser_history":["x"],"machine":{"hostname":"secret",`, 1)))
	if again, _ := json.Marshal(got); err != nil || string(again) != string(p) {
		t.Errorf("got %s, %v", again, err)
	}
}

func TestReportRefused(t *testing.T) {
	good, err := fullReport().Encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string][2]string{
		"format":             {`"format":1`, `"format":2`},
		"no format":          {`"format":1,`, ``},
		"id":                 {`0f0f`, `../x`},
		"negative":           {`"epoch":7`, `"epoch":-1`},
		"huge":               {`"epoch":7`, `"epoch":99999999999999999`},
		"beyond":             {`"epoch":7`, `"epoch":1e400`},
		"fraction":           {`"epoch":7`, `"epoch":1.5`},
		"text for a number":  {`"epoch":7`, `"epoch":"7"`},
		"control characters": {`"cpu":"x"`, `"cpu":"\u001b[2J"`},
		"a second line":      {`"cpu":"x"`, `"cpu":"a\nb"`},
		"bidi":               {`"cpu":"x"`, `"cpu":"a\u202eb"`},
		"long text":          {`"cpu":"x"`, `"cpu":"` + strings.Repeat("x", 201) + `"`},
		"end":                {`"ended":"off"`, `"ended":"never"`},
		"kind":               {`"kind":"hoard"`, `"kind":"http://example.org"`},
		"image":              {`"image":"disk"`, `"image":"floppy"`},
		"sealed image":       {`"image":"memory"`, `"image":""`},
		"year":               {`2026-11-26`, `0001-01-01`},
		"not a time":         {`2026-11-26`, `yesterday`},
		"many runs":          {`"runs":[`, `"runs":[` + strings.Repeat(`{"ended":"off","start":"2026-11-26T10:00:00Z"},`, 64)},
		"too long":           {`{`, `{` + strings.Repeat(" ", MaxReport)},
		"two":                {`"format":1`, `}{"format":1`},
	} {
		text := strings.Replace(string(good), change[0], change[1], 1)
		if text == string(good) {
			t.Errorf("%s: nothing was changed", name)
		}
		if _, err := ParseReport([]byte(text)); !errors.Is(err, parcel.ErrUsage) {
			t.Errorf("%s: got %v, want a refusal", name, err)
		}
	}
}

func FuzzParseReport(f *testing.F) {
	good, err := fullReport().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"format":1,"id":"00000000000000000000000000000000"}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, p []byte) {
		r, err := ParseReport(p)
		if err != nil {
			if !errors.Is(err, parcel.ErrUsage) || parcel.Clean(err.Error()) != err.Error() {
				t.Fatalf("error %q", err)
			}
			return
		}
		line, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if strings.ContainsAny(string(line), "\n\r\x1b") {
			t.Fatalf("not a line: %q", line)
		}
		if again, err := ParseReport(line); err != nil && len(line) <= MaxReport || err == nil && !reflect.DeepEqual(again, r) {
			t.Fatalf("%+v became %+v, %v", r, again, err)
		}
	})
}
