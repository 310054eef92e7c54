-- Readings of many devices, one in a hundred changing a state: of 200 requests one is hot, and that device's next is not.
local tokens = {}
for line in io.lines(os.getenv("AEMOS_BENCH_TOKENS")) do tokens[#tokens + 1] = line end
local count, thread = 0, 0

function setup(t) t:set("id", thread); thread = thread + 1 end

function request()
  count = count + 1
  local value = (count % 200 == 0) and "30.5" or "20.5"
  local token = tokens[(count + id * 500) % #tokens + 1]
  return wrk.format("POST", "/api/v1/datastreams/token",
    { ["Authorization"] = "Bearer " .. token, ["Content-Type"] = "application/json" },
    '{"value": "' .. value .. '", "variableName": "temperature"}')
end
