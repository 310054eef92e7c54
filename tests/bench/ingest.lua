-- Readings of many devices, one in a hundred changing a state: of 199 one is hot, and that device's next is not. 200
-- would divide the number of devices, so that the same ones were always hot and nothing changed.
local tokens = {}
for line in io.lines(os.getenv("AEMOS_BENCH_TOKENS")) do tokens[#tokens + 1] = line end
local batch = tonumber(os.getenv("AEMOS_BENCH_BATCH") or "1")
local path = batch > 1 and "/api/v1/datastreams/batch" or "/api/v1/datastreams/token"
local pause = tonumber(os.getenv("AEMOS_BENCH_PAUSE_MS") or "0")
local requests, sent = 0, 0

local function reading()
  sent = sent + 1
  return '{"value": "' .. ((sent % 199 == 0) and "30.5" or "20.5") .. '", "variableName": "temperature"}'
end

local function body()
  if batch == 1 then return reading() end
  local readings = {}
  for i = 1, batch do readings[i] = reading() end
  return "[" .. table.concat(readings, ",") .. "]"
end

function request()
  requests = requests + 1
  local token = tokens[requests % #tokens + 1]
  return wrk.format("POST", path,
    { ["Authorization"] = "Bearer " .. token, ["Content-Type"] = "application/json" }, body())
end

if pause > 0 then
  function delay() return pause end
end
