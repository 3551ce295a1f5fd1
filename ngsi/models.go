package ngsi

import (
	"cmp"
	"maps"
	"math"
	"slices"

	"campus-gateway"
)

// This file is the one place that knows which data model takes which quantity,
// under which name, in which unit and within which bounds. Names, units and
// bounds are those of the official schemas (smartdatamodels.org); unit codes
// are UN/CEFACT Recommendation 20.

// home is the attribute of a data model that takes a quantity.
type home struct {
	attr     string
	per      float64 // how many of the gateway's units make one of the model's
	decimals int     // kept, in the model's unit: about a tenth of what a good sensor resolves
	unit     string  // unit code; empty where Rec 20 has none
	min, max float64 // the model's bounds. A value outside goes to DeviceMeasurement
}

// model is a smart data model that takes measured values.
type model struct {
	subject string // names the @context
	dated   dated
	located bool   // location is required
	parcel  bool   // hasAgriParcel is required
	device  string // the attribute that names the Device
	homes   map[gateway.Quantity]home
}

// dated is how a model says when it was observed.
type dated int

const (
	dateObserved dated = iota
	dateFromTo         // dateObservedFrom, dateObservedTo
	undated            // only TimeInstant and observedAt say it
)

const (
	deviceType      = "Device"
	measurementType = "DeviceMeasurement"
	deviceSubject   = "dataModel.Device"
)

var anything = math.Inf(1)

// models has no entry for a quantity where its model has no attribute for it,
// or one of another meaning: IndoorEnvironmentObserved.co2 is in mg/L, which ppm
// alone do not give. DeviceMeasurement takes those.
var models = map[string]*model{
	"IndoorEnvironmentObserved": {
		subject: "dataModel.Environment", located: true, device: "refDevice",
		homes: map[gateway.Quantity]home{
			gateway.Temperature: {"temperature", 1, 4, "CEL", 0, anything}, // the schema's minimum
			gateway.Humidity:    {"relativeHumidity", 100, 5, "C62", 0, 1},
			gateway.Pressure:    {"atmosphericPressure", 100, 4, "A97", 0, anything},
			gateway.Illuminance: {"illuminance", 1, 3, "LUX", 0, anything},
		},
	},
	"AirQualityObserved": {
		subject: "dataModel.Environment", located: true, device: "refDevice",
		homes: map[gateway.Quantity]home{
			gateway.CO2:           {"co2", 1, 2, "59", 0, anything},
			gateway.PM1:           {"pm1", 1, 3, "GQ", 0, anything},
			gateway.PM25:          {"pm25", 1, 3, "GQ", 0, anything},
			gateway.PM4:           {"pm4", 1, 3, "GQ", 0, anything},
			gateway.PM10:          {"pm10", 1, 3, "GQ", 0, anything},
			gateway.TVOC:          {"volatileOrganicCompoundsTotal", 1, 2, "61", 0, anything},
			gateway.Temperature:   {"temperature", 1, 4, "CEL", -anything, anything},
			gateway.Humidity:      {"relativeHumidity", 100, 5, "C62", 0, 1},
			gateway.Pressure:      {"pressure", 100, 4, "A97", 0, anything},
			gateway.Precipitation: {"precipitation", 1, 4, "MMT", 0, anything},
			gateway.WindSpeed:     {"windSpeed", 1, 3, "MTS", 0, anything},
			gateway.WindDirection: {"windDirection", 1, 2, "DD", -180, 180},
		},
	},
	"WeatherObserved": {
		subject: "dataModel.Weather", located: true, device: "refDevice",
		homes: map[gateway.Quantity]home{
			gateway.Temperature:     {"temperature", 1, 4, "CEL", -anything, anything},
			gateway.Humidity:        {"relativeHumidity", 100, 5, "C62", 0, 1},
			gateway.Pressure:        {"atmosphericPressure", 100, 4, "A97", 0, anything},
			gateway.Illuminance:     {"illuminance", 1, 3, "LUX", 0, anything},
			gateway.UVIndex:         {"uVIndexMax", 1, 3, "C62", 0, anything},
			gateway.SolarIrradiance: {"solarRadiation", 1, 3, "D54", 0, anything},
			gateway.Precipitation:   {"precipitation", 1, 4, "MMT", 0, anything}, // 1 L/m² is 1 mm
			gateway.WindSpeed:       {"windSpeed", 1, 3, "MTS", 0, anything},
			gateway.WindDirection:   {"windDirection", 1, 2, "DD", 0, 360},
		},
	},
	"AgriParcelRecord": {
		subject: "dataModel.Agrifood", located: true, parcel: true, dated: undated, device: "hasDevice",
		homes: map[gateway.Quantity]home{
			gateway.SoilMoisture:     {"soilMoistureVwc", 100, 5, "C62", 0, 1},
			gateway.SoilTemperature:  {"soilTemperature", 1, 4, "CEL", -anything, anything},
			gateway.SoilConductivity: {"soilMoistureEc", 10_000, 8, "D10", 0, anything},
			gateway.Temperature:      {"airTemperature", 1, 4, "CEL", -anything, anything},
			gateway.Humidity:         {"relativeHumidity", 100, 5, "C62", 0, 1},
			gateway.Pressure:         {"atmosphericPressure", 100, 4, "A97", 0, anything},
		},
	},
	"WaterQualityObserved": {
		subject: "dataModel.WaterQuality", located: true, device: "refDevice",
		homes: map[gateway.Quantity]home{
			gateway.WaterTemperature: {"temperature", 1, 4, "CEL", -anything, anything},
			gateway.PH:               {"pH", 1, 4, "Q30", 0, 14},
			gateway.TDS:              {"tds", 1, 3, "M1", 0, anything},
			gateway.Turbidity:        {"turbidity", 1, 3, "", 0, anything},
			gateway.ORP:              {"orp", 1, 3, "2Z", 0, anything},            // the schema's minimum
			gateway.WaterFlow:        {"flow", 1000. / 60, 6, "MQH", 0, anything}, // m³/h
		},
	},
	"WaterObserved": {
		subject: "dataModel.Environment", located: true, device: "refDevice",
		homes: map[gateway.Quantity]home{
			gateway.WaterFlow:  {"flow", 1, 4, "L2", 0, anything},
			gateway.WaterLevel: {"waterLevel", 1000, 6, "MTR", 0, anything},
		},
	},
	"NoiseLevelObserved": {
		subject: "dataModel.Environment", located: true, dated: dateFromTo, device: "refDevice",
		homes: map[gateway.Quantity]home{
			gateway.NoiseLevel: {"LAeq", 1, 3, "2N", -anything, anything},
		},
	},
	"SmartMeteringObservation": {
		subject: deviceSubject, device: "refDevice",
		homes: map[gateway.Quantity]home{ // both in one attribute: the second of a reading goes to DeviceMeasurement
			gateway.Energy:      {"totalConsumption", 1000, 6, "KWH", -anything, anything},
			gateway.WaterVolume: {"totalConsumption", 1000, 6, "MTQ", -anything, anything},
		},
	},
	// The catch-all: one entity a quantity, in the gateway's own unit (kinds).
	measurementType: {subject: deviceSubject, device: "refDevice"},
	// What a sensor says of itself belongs to its Device whatever it measures.
	deviceType: {
		subject: deviceSubject, dated: undated,
		homes: map[gateway.Quantity]home{
			gateway.BatteryLevel: {"batteryLevel", 100, 4, "C62", 0, 1},
			gateway.RSSI:         {"rssi", 1, 2, "DBM", -anything, anything},
		},
	},
}

// meters is SmartMeteringObservation.meterType.
var meters = map[gateway.Quantity]string{gateway.Energy: "Electricity", gateway.WaterVolume: "Water"}

// choices picks a sensor's model: the first row with one of its quantities, and
// whose model can be filled (see Thing.model). Rain and wind are outdoors
// whatever the site says.
var choices = []struct {
	any             []gateway.Quantity
	indoor, outdoor string
}{
	{[]gateway.Quantity{gateway.Energy, gateway.WaterVolume}, "SmartMeteringObservation", "SmartMeteringObservation"},
	{[]gateway.Quantity{gateway.CO2, gateway.PM1, gateway.PM25, gateway.PM4, gateway.PM10, gateway.TVOC}, "AirQualityObserved", "AirQualityObserved"},
	{[]gateway.Quantity{gateway.SoilMoisture, gateway.SoilTemperature, gateway.SoilConductivity}, "AgriParcelRecord", "AgriParcelRecord"},
	{[]gateway.Quantity{gateway.WaterTemperature, gateway.PH, gateway.TDS, gateway.Turbidity, gateway.ORP}, "WaterQualityObserved", "WaterQualityObserved"},
	{[]gateway.Quantity{gateway.WaterFlow, gateway.WaterLevel}, "WaterObserved", "WaterObserved"},
	{[]gateway.Quantity{gateway.Precipitation, gateway.WindSpeed, gateway.WindDirection}, "WeatherObserved", "WeatherObserved"},
	{[]gateway.Quantity{gateway.Temperature, gateway.Humidity, gateway.Pressure, gateway.Illuminance}, "IndoorEnvironmentObserved", "WeatherObserved"},
	{[]gateway.Quantity{gateway.UVIndex, gateway.SolarIrradiance}, measurementType, "WeatherObserved"},
	{[]gateway.Quantity{gateway.NoiseLevel}, "NoiseLevelObserved", "NoiseLevelObserved"},
}

// kinds has every quantity: what it is called in Device.controlledProperty (a
// closed list: the nearest word), and how DeviceMeasurement takes it.
var kinds = map[gateway.Quantity]struct {
	closed   string
	free     string // DeviceMeasurement.controlledProperty; empty: the quantity's own name
	unit     string // unit code; empty: Rec 20 has none, the unit is written out
	decimals int
}{
	gateway.Temperature:      {"temperature", "", "CEL", 4},
	gateway.Humidity:         {"humidity", "", "P1", 3},
	gateway.Pressure:         {"atmosphericPressure", "", "PAL", 2},
	gateway.CO2:              {"airPollution", "", "59", 2},
	gateway.PM1:              {"airPollution", "", "GQ", 3},
	gateway.PM25:             {"airPollution", "", "GQ", 3},
	gateway.PM4:              {"airPollution", "", "GQ", 3},
	gateway.PM10:             {"airPollution", "", "GQ", 3},
	gateway.TVOC:             {"airPollution", "", "61", 2},
	gateway.Illuminance:      {"light", "", "LUX", 3},
	gateway.UVIndex:          {"solarRadiation", "", "C62", 3},
	gateway.SolarIrradiance:  {"solarRadiation", "", "D54", 3},
	gateway.NoiseLevel:       {"noiseLevel", "", "2N", 3},
	gateway.Occupancy:        {"occupancy", "", "C62", 0},
	gateway.Contact:          {"gateOpening", "gateOpening", "C62", 0}, // 1: open
	gateway.Button:           {"movementActivity", "", "C62", 0},
	gateway.Voltage:          {"power", "", "VLT", 7},
	gateway.Current:          {"power", "", "AMP", 7},
	gateway.Power:            {"power", "", "WTT", 6},
	gateway.Energy:           {"energy", "", "WHR", 4},
	gateway.Frequency:        {"speed", "", "HTZ", 4},
	gateway.Pulses:           {"trafficFlow", "", "C62", 0},
	gateway.Distance:         {"depth", "", "MMT", 3},
	gateway.Acceleration:     {"movementActivity", "", "MSK", 5},
	gateway.SoilMoisture:     {"soilMoisture", "", "P1", 3},
	gateway.SoilTemperature:  {"temperature", "", "CEL", 4},
	gateway.SoilConductivity: {"conductivity", "", "", 3},
	gateway.WaterTemperature: {"temperature", "", "CEL", 4},
	gateway.WaterFlow:        {"waterFlow", "", "L2", 4},
	gateway.WaterVolume:      {"waterConsumption", "", "LTR", 4},
	gateway.WaterLevel:       {"waterLevel", "", "MMT", 3},
	gateway.PH:               {"pH", "", "Q30", 4},
	gateway.TDS:              {"tds", "", "M1", 3},
	gateway.Turbidity:        {"turbidity", "", "", 3},
	gateway.ORP:              {"orp", "", "2Z", 3},
	gateway.Precipitation:    {"precipitation", "", "MMT", 4},
	gateway.WindSpeed:        {"windSpeed", "", "MTS", 3},
	gateway.WindDirection:    {"windDirection", "", "DD", 2},
	gateway.BatteryLevel:     {"batteryLife", "", "P1", 2},
	gateway.RSSI:             {"power", "", "DBM", 2},
}

// placements is IndoorEnvironmentObserved.sensorPlacement.
var placements = []string{"northWall", "southWall", "eastWall", "westWall", "center", "floor", "roof", "ceiling"}

// Types lists the data models that a sensor can be given.
func Types() []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(models)), func(t string) bool { return t == deviceType })
}

// model is the name of the data model that takes what t senses. Without a
// location or a parcel a model that requires one cannot be filled:
// DeviceMeasurement requires neither.
func (t *Thing) model() string {
	if t.EntityType != "" {
		return t.EntityType
	}
	for _, c := range choices {
		name := c.indoor
		if t.Outdoor {
			name = c.outdoor
		}
		m := models[name]
		if m.parcel && t.Parcel == "" || m.located && t.Location == nil {
			continue
		}
		if slices.ContainsFunc(t.Quantities, func(q gateway.Quantity) bool { return slices.Contains(c.any, q) }) {
			return name
		}
	}
	return measurementType
}

// take converts v into the model's unit. It is not ok outside the model's bounds.
func (h *home) take(v float64) (float64, bool) {
	v = round(v/h.per, h.decimals)
	if h.max == 180 && v > 180 && v <= 360 { // a direction of -180..180
		v = round(v-360, h.decimals)
	}
	return v, v >= h.min && v <= h.max
}

// within reports whether v is within the model's bounds.
func (h *home) within(v float64) bool { _, ok := h.take(v); return ok }

var powers = [...]float64{1, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8}

// round gives the float64 nearest to v with so many decimals, so that its
// shortest form has no more. What is too large to have them stays as it is.
func round(v float64, decimals int) float64 {
	scaled := v * powers[decimals]
	if math.Abs(scaled) >= 1<<53 {
		return v
	}
	return cmp.Or(math.Round(scaled)/powers[decimals], 0) // never -0
}
