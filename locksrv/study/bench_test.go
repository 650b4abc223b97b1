package study_test

import (
	"path/filepath"
	"testing"

	"isr/locksrv/study/studytest"
)

// BenchmarkHarvest is the harvest of a day, of a realm that 30 users have used
// for two years, about twelve times a week.
func BenchmarkHarvest(b *testing.B) {
	const weeks = 104
	r := studytest.Make(b, b.TempDir(), 30, weeks)
	dir := filepath.Join(b.TempDir(), "study")
	end := studytest.Start.AddDate(0, 0, 7*weeks)
	h := harvest(b, r, dir, nil, end.AddDate(0, 0, -3))
	b.ReportMetric(float64(h.Events+h.Reports), "lines")
	for b.Loop() {
		harvest(b, r, dir, nil, end)
	}
}
