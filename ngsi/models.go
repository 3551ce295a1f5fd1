package ngsi

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"time"

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
	kind     Kind    // Number or Phase; of what is no number, Bool or Text
	below    float64 // ParkingSpot.status: a car stands closer than this; 0: another attribute
}

// model is a smart data model that takes measured values.
type model struct {
	subject string // names the @context
	dated   dated
	located bool   // location is required
	parcel  bool   // hasAgriParcel is required
	parking bool   // refParkingSite and category are required
	device  string // the attribute that names the Device
	listed  bool   // as a list
	needs   string // an attribute that is required and measured
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
// alone do not give (see indoorCO2). DeviceMeasurement takes those.
//
// It takes a value out of bounds as well: a cold store below 0 °C, which
// IndoorEnvironmentObserved has no word for. The temperature that the broker
// holds of that entity is then an old one. It is neither deleted, which would
// end subscriptions and queries that know it, nor sent again: its own TimeInstant
// or observedAt says how old it is, while those of the entity's other attributes
// go on. Where the cold is usual, entity.type AirQualityObserved has no such bound.
var models = map[string]*model{
	"IndoorEnvironmentObserved": {
		subject: "dataModel.Environment", located: true, device: "refDevice",
		homes: map[gateway.Quantity]home{
			gateway.Temperature: {"temperature", 1, 4, "CEL", 0, anything, Number, 0}, // the schema's minimum
			gateway.Humidity:    {"relativeHumidity", 100, 5, "C62", 0, 1, Number, 0},
			gateway.Pressure:    {"atmosphericPressure", 100, 4, "A97", 0, anything, Number, 0},
			gateway.Illuminance: {"illuminance", 1, 3, "LUX", 0, anything, Number, 0},
			gateway.PeopleCount: {"peopleCount", 1, 0, "C62", 0, anything, Number, 0},
		},
	},
	"AirQualityObserved": {
		subject: "dataModel.Environment", located: true, device: "refDevice",
		homes: map[gateway.Quantity]home{
			gateway.CO2:           {"co2", 1, 2, "59", 0, anything, Number, 0},
			gateway.PM1:           {"pm1", 1, 3, "GQ", 0, anything, Number, 0},
			gateway.PM25:          {"pm25", 1, 3, "GQ", 0, anything, Number, 0},
			gateway.PM4:           {"pm4", 1, 3, "GQ", 0, anything, Number, 0},
			gateway.PM10:          {"pm10", 1, 3, "GQ", 0, anything, Number, 0},
			gateway.CO:            {"co", 1, 4, "GP", 0, anything, Number, 0},
			gateway.NO2:           {"no2", 1, 3, "GQ", 0, anything, Number, 0},
			gateway.O3:            {"o3", 1, 3, "GQ", 0, anything, Number, 0},
			gateway.SO2:           {"so2", 1, 3, "GQ", 0, anything, Number, 0},
			gateway.TVOC:          {"volatileOrganicCompoundsTotal", 1, 2, "61", 0, anything, Number, 0},
			gateway.Temperature:   {"temperature", 1, 4, "CEL", -anything, anything, Number, 0},
			gateway.Humidity:      {"relativeHumidity", 100, 5, "C62", 0, 1, Number, 0},
			gateway.Pressure:      {"pressure", 100, 4, "A97", 0, anything, Number, 0},
			gateway.Precipitation: {"precipitation", 1, 4, "MMT", 0, anything, Number, 0},
			gateway.WindSpeed:     {"windSpeed", 1, 3, "MTS", 0, anything, Number, 0},
			gateway.WindDirection: {"windDirection", 1, 2, "DD", -180, 180, Number, 0},
		},
	},
	"WeatherObserved": {
		subject: "dataModel.Weather", located: true, device: "refDevice",
		homes: map[gateway.Quantity]home{
			gateway.Temperature:     {"temperature", 1, 4, "CEL", -anything, anything, Number, 0},
			gateway.Humidity:        {"relativeHumidity", 100, 5, "C62", 0, 1, Number, 0},
			gateway.Pressure:        {"atmosphericPressure", 100, 4, "A97", 0, anything, Number, 0},
			gateway.Illuminance:     {"illuminance", 1, 3, "LUX", 0, anything, Number, 0},
			gateway.UVIndex:         {"uVIndexMax", 1, 3, "C62", 0, anything, Number, 0},
			gateway.SolarIrradiance: {"solarRadiation", 1, 3, "D54", 0, anything, Number, 0},
			gateway.Precipitation:   {"precipitation", 1, 4, "MMT", 0, anything, Number, 0}, // 1 L/m² is 1 mm
			gateway.WindSpeed:       {"windSpeed", 1, 3, "MTS", 0, anything, Number, 0},
			gateway.WindDirection:   {"windDirection", 1, 2, "DD", 0, 360, Number, 0},
		},
	},
	"AgriParcelRecord": {
		subject: "dataModel.Agrifood", located: true, parcel: true, dated: undated, device: "hasDevice", listed: true,
		homes: map[gateway.Quantity]home{
			gateway.SoilMoisture:     {"soilMoistureVwc", 100, 5, "C62", 0, 1, Number, 0},
			gateway.SoilTemperature:  {"soilTemperature", 1, 4, "CEL", -anything, anything, Number, 0},
			gateway.SoilConductivity: {"soilMoistureEc", 10_000, 8, "D10", 0, anything, Number, 0},
			gateway.Temperature:      {"airTemperature", 1, 4, "CEL", -anything, anything, Number, 0},
			gateway.Humidity:         {"relativeHumidity", 100, 5, "C62", 0, 1, Number, 0},
			gateway.Pressure:         {"atmosphericPressure", 100, 4, "A97", 0, anything, Number, 0},
			gateway.SolarIrradiance:  {"solarRadiation", 1000, 6, "", 0, anything, Number, 0}, // kW/m²
		},
	},
	"WaterQualityObserved": {
		subject: "dataModel.WaterQuality", located: true, device: "refDevice",
		homes: map[gateway.Quantity]home{
			gateway.WaterTemperature:  {"temperature", 1, 4, "CEL", -anything, anything, Number, 0},
			gateway.PH:                {"pH", 1, 4, "Q30", 0, 14, Number, 0},
			gateway.TDS:               {"tds", 1, 3, "M1", 0, anything, Number, 0},
			gateway.Turbidity:         {"turbidity", 1, 3, "", 0, anything, Number, 0},
			gateway.ORP:               {"orp", 1, 3, "2Z", 0, anything, Number, 0}, // the schema's minimum
			gateway.WaterConductivity: {"conductivity", 10_000, 8, "D10", 0, anything, Number, 0},
			gateway.WaterFlow:         {"flow", 1000. / 60, 6, "MQH", 0, anything, Number, 0}, // m³/h
		},
	},
	"WaterObserved": {
		subject: "dataModel.Environment", located: true, device: "refDevice",
		homes: map[gateway.Quantity]home{
			gateway.WaterFlow:  {"flow", 1, 4, "L2", 0, anything, Number, 0},
			gateway.WaterLevel: {"waterLevel", 1000, 6, "MTR", 0, anything, Number, 0},
		},
	},
	"NoiseLevelObserved": {
		subject: "dataModel.Environment", located: true, dated: dateFromTo, device: "refDevice",
		homes: map[gateway.Quantity]home{
			gateway.NoiseLevel:    {"LAeq", 1, 3, "2N", -anything, anything, Number, 0},
			gateway.NoiseLevelMax: {"LAmax", 1, 3, "2N", -anything, anything, Number, 0},
		},
	},
	"SmartMeteringObservation": {
		subject: deviceSubject, device: "refDevice",
		homes: map[gateway.Quantity]home{ // all in one attribute: the second of a reading goes to DeviceMeasurement
			gateway.Energy:      {"totalConsumption", 1000, 6, "KWH", -anything, anything, Number, 0},
			gateway.WaterVolume: {"totalConsumption", 1000, 6, "MTQ", -anything, anything, Number, 0},
			gateway.GasVolume:   {"totalConsumption", 1000, 6, "MTQ", -anything, anything, Number, 0},
		},
	},
	// Of one phase: what a clamp or a plug-in meter of a lab measures.
	"ACMeasurement": {
		subject: "dataModel.Energy", located: true, device: "refDevice", listed: true,
		homes: map[gateway.Quantity]home{
			gateway.ACVoltage:     {"phaseVoltage", 1, 4, "VLT", 0, anything, Phase, 0},
			gateway.ACCurrent:     {"current", 1, 5, "AMP", 0, anything, Phase, 0},
			gateway.ACPower:       {"activePower", 1, 4, "WTT", 0, anything, Phase, 0}, // fed back into mains: DeviceMeasurement
			gateway.ACPowerFactor: {"powerFactor", 1, 4, "C62", -1, 1, Phase, 0},
			gateway.ACFrequency:   {"frequency", 1, 4, "HTZ", 0, anything, Number, 0},
			gateway.ACEnergy:      {"totalActiveEnergyImport", 1000, 6, "KWH", 0, anything, Number, 0},
		},
	},
	"VibrationsObserved": {
		subject: "dataModel.Building", device: "refDevice", needs: "accelerationMeasured",
		homes: map[gateway.Quantity]home{
			gateway.Acceleration: {"accelerationMeasured", 1, 5, "MSK", -anything, anything, Number, 0},
		},
	},
	"CrowdFlowObserved": {
		subject: "dataModel.Transportation", device: "refDevice",
		homes: map[gateway.Quantity]home{
			gateway.PeopleCount: {"peopleCount", 1, 0, "C62", 0, anything, Number, 0},
		},
	},
	"ParkingSpot": {
		subject: "dataModel.Parking", located: true, parking: true, dated: undated, device: "refDevice", listed: true, needs: "status",
		homes: map[gateway.Quantity]home{
			gateway.Distance: {"status", 1, 3, "", 0, anything, Text, 0},
		},
	},
	// Of a well: how far down the water begins, and how much of it there is.
	"PhreaticObserved": {
		subject: "dataModel.Environment", located: true, device: "refDevice", listed: true,
		homes: map[gateway.Quantity]home{
			gateway.Distance:   {"waterTable", 1000, 6, "MTR", -anything, anything, Number, 0},
			gateway.WaterLevel: {"depth", 1000, 6, "MTR", -anything, anything, Number, 0},
		},
	},
	// The catch-all: one entity a quantity, in the gateway's own unit (kinds).
	measurementType: {subject: deviceSubject, device: "refDevice"},
	// What a sensor says of itself belongs to its Device whatever it measures.
	deviceType: {
		subject: deviceSubject, dated: undated,
		homes: map[gateway.Quantity]home{
			gateway.BatteryLevel: {"batteryLevel", 100, 4, "C62", 0, 1, Number, 0},
			gateway.RSSI:         {"rssi", 1, 2, "DBM", -anything, anything, Number, 0},
		},
	},
}

// meters is SmartMeteringObservation.meterType.
var meters = map[gateway.Quantity]string{gateway.Energy: "Electricity", gateway.WaterVolume: "Water", gateway.GasVolume: "Gas"}

// choices picks a sensor's model: the first row with one of its quantities, and
// whose model can be filled (see Thing.model). Rain and wind are outdoors
// whatever the site says.
var choices = []struct {
	any             []gateway.Quantity
	indoor, outdoor string
}{
	{[]gateway.Quantity{gateway.ACVoltage, gateway.ACCurrent, gateway.ACPower, gateway.ACPowerFactor, gateway.ACFrequency, gateway.ACEnergy}, "ACMeasurement", "ACMeasurement"},
	{[]gateway.Quantity{gateway.Energy, gateway.WaterVolume, gateway.GasVolume}, "SmartMeteringObservation", "SmartMeteringObservation"},
	{[]gateway.Quantity{gateway.CO2, gateway.PM1, gateway.PM25, gateway.PM4, gateway.PM10, gateway.TVOC, gateway.CO, gateway.NO2, gateway.O3, gateway.SO2}, "AirQualityObserved", "AirQualityObserved"},
	{[]gateway.Quantity{gateway.SoilMoisture, gateway.SoilTemperature, gateway.SoilConductivity}, "AgriParcelRecord", "AgriParcelRecord"},
	{[]gateway.Quantity{gateway.WaterTemperature, gateway.PH, gateway.TDS, gateway.Turbidity, gateway.ORP, gateway.WaterConductivity}, "WaterQualityObserved", "WaterQualityObserved"},
	{[]gateway.Quantity{gateway.WaterFlow, gateway.WaterLevel}, "WaterObserved", "WaterObserved"},
	{[]gateway.Quantity{gateway.Precipitation, gateway.WindSpeed, gateway.WindDirection}, "WeatherObserved", "WeatherObserved"},
	{[]gateway.Quantity{gateway.Temperature, gateway.Humidity, gateway.Pressure, gateway.Illuminance}, "IndoorEnvironmentObserved", "WeatherObserved"},
	{[]gateway.Quantity{gateway.UVIndex, gateway.SolarIrradiance}, measurementType, "WeatherObserved"},
	{[]gateway.Quantity{gateway.PeopleCount}, "IndoorEnvironmentObserved", "CrowdFlowObserved"},
	{[]gateway.Quantity{gateway.NoiseLevel, gateway.NoiseLevelMax}, "NoiseLevelObserved", "NoiseLevelObserved"},
	{[]gateway.Quantity{gateway.Acceleration}, "VibrationsObserved", "VibrationsObserved"},
}

// kinds has every quantity: what it is called in Device.controlledProperty (a
// closed list: the nearest word), and how DeviceMeasurement takes it.
var kinds = map[gateway.Quantity]struct {
	closed   string
	free     string // DeviceMeasurement.controlledProperty; empty: the quantity's own name
	unit     string // unit code; empty: Rec 20 has none, the unit is written out
	decimals int
}{
	gateway.Temperature:       {"temperature", "", "CEL", 4},
	gateway.Humidity:          {"humidity", "", "P1", 3},
	gateway.Pressure:          {"atmosphericPressure", "", "PAL", 2},
	gateway.CO2:               {"airPollution", "", "59", 2},
	gateway.PM1:               {"airPollution", "", "GQ", 3},
	gateway.PM25:              {"airPollution", "", "GQ", 3},
	gateway.PM4:               {"airPollution", "", "GQ", 3},
	gateway.PM10:              {"airPollution", "", "GQ", 3},
	gateway.TVOC:              {"airPollution", "", "61", 2},
	gateway.CO:                {"airPollution", "", "GP", 4},
	gateway.NO2:               {"airPollution", "", "GQ", 3},
	gateway.O3:                {"airPollution", "", "GQ", 3},
	gateway.SO2:               {"airPollution", "", "GQ", 3},
	gateway.VOCIndex:          {"airPollution", "", "C62", 2},
	gateway.NOxIndex:          {"airPollution", "", "C62", 2},
	gateway.IAQ:               {"airPollution", "", "C62", 2},
	gateway.AQIUBA:            {"airPollution", "", "C62", 0},
	gateway.Illuminance:       {"light", "", "LUX", 3},
	gateway.UVIndex:           {"solarRadiation", "", "C62", 3},
	gateway.SolarIrradiance:   {"solarRadiation", "", "D54", 3},
	gateway.NoiseLevel:        {"noiseLevel", "", "2N", 3},
	gateway.NoiseLevelMax:     {"noiseLevel", "", "2N", 3},
	gateway.PeopleCount:       {"occupancy", "", "C62", 0},
	gateway.Occupancy:         {"occupancy", "", "C62", 0},
	gateway.Contact:           {"gateOpening", "gateOpening", "C62", 0}, // 1: open
	gateway.Button:            {"movementActivity", "", "C62", 0},
	gateway.Voltage:           {"power", "", "VLT", 7},
	gateway.Current:           {"power", "", "AMP", 7},
	gateway.Power:             {"power", "", "WTT", 6},
	gateway.Energy:            {"energy", "", "WHR", 4},
	gateway.ACVoltage:         {"power", "", "VLT", 4},
	gateway.ACCurrent:         {"power", "", "AMP", 5},
	gateway.ACPower:           {"power", "", "WTT", 4},
	gateway.ACEnergy:          {"energy", "", "WHR", 4},
	gateway.ACFrequency:       {"power", "", "HTZ", 4},
	gateway.ACPowerFactor:     {"power", "", "C62", 4},
	gateway.Frequency:         {"speed", "", "HTZ", 4},
	gateway.Pulses:            {"trafficFlow", "", "C62", 0},
	gateway.Distance:          {"depth", "", "MMT", 3},
	gateway.Acceleration:      {"movementActivity", "", "MSK", 5},
	gateway.SoilMoisture:      {"soilMoisture", "", "P1", 3},
	gateway.SoilTemperature:   {"temperature", "", "CEL", 4},
	gateway.SoilConductivity:  {"conductivity", "", "", 3},
	gateway.WaterTemperature:  {"temperature", "", "CEL", 4},
	gateway.WaterFlow:         {"waterFlow", "", "L2", 4},
	gateway.WaterVolume:       {"waterConsumption", "", "LTR", 4},
	gateway.GasVolume:         {"gasConsumption", "", "LTR", 4},
	gateway.WaterLevel:        {"waterLevel", "", "MMT", 3},
	gateway.PH:                {"pH", "", "Q30", 4},
	gateway.TDS:               {"tds", "", "M1", 3},
	gateway.Turbidity:         {"turbidity", "", "", 3},
	gateway.ORP:               {"orp", "", "2Z", 3},
	gateway.WaterConductivity: {"conductivity", "", "", 3},
	gateway.Precipitation:     {"precipitation", "", "MMT", 4},
	gateway.WindSpeed:         {"windSpeed", "", "MTS", 3},
	gateway.WindDirection:     {"windDirection", "", "DD", 2},
	gateway.BatteryLevel:      {"batteryLife", "", "P1", 2},
	gateway.RSSI:              {"power", "", "DBM", 2},
	gateway.ChipTemperature:   {"temperature", "", "CEL", 4},
	gateway.CPUTemperature:    {"temperature", "", "CEL", 4},
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
		if slices.ContainsFunc(t.sent(), func(q gateway.Quantity) bool { return slices.Contains(c.any, q) }) {
			return name
		}
	}
	return measurementType
}

// take converts v into the model's unit. It is not ok outside the model's bounds.
func (h *home) take(v float64) (float64, bool) {
	if v == -1 && h.attr == "batteryLevel" { // Device's word for: it cannot be told just now
		return v, true
	}
	v = round(v/h.per, h.decimals)
	if h.max == 180 && v > 180 && v <= 360 { // a direction of -180..180
		v = round(v-360, h.decimals)
	}
	return v, v >= h.min && v <= h.max
}

// within reports whether v is within the model's bounds.
func (h *home) within(v float64) bool { _, ok := h.take(v); return ok }

// indoorCO2 is CO2 in mg/L where the reading has the pressure and temperature
// that make it of ppm: M·p/(R·T), the law of ideal gases. ppm are by volume, so
// one is a millionth of the amount of substance.
func (s *site) indoorCO2(v gateway.Value, all []gateway.Value, at time.Time) (Attr, bool) {
	if s.typ != "IndoorEnvironmentObserved" || s.model.homes[v.Quantity].attr != "" {
		return Attr{}, false
	}
	of := func(q gateway.Quantity) float64 {
		for _, v := range all {
			if x, ok := v.V.(float64); ok && v.Quantity == q {
				return x
			}
		}
		return math.NaN()
	}
	const molar, gas = 44.01, 8.314462618                         // g/mol, J/(mol·K)
	kelvin := of(gateway.Temperature) + 273.15                    // NaN where there is none
	perPPM := molar * of(gateway.Pressure) / (gas * kelvin) / 1e6 // g/m³, which is mg/L
	x := round(of(gateway.CO2)*perPPM, 5)
	if !(kelvin > 0 && perPPM > 0 && x >= 0 && x < 1e6) { // beyond is no air
		return Attr{}, false
	}
	return Attr{Name: "co2", Num: x, At: at, Unit: "M1"}, true
}

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
