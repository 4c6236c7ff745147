// Fetches one URL with node's own HTTP client and writes the body to stdout.
const http = require("http");
http.get(process.argv[2], (answer) => answer.pipe(process.stdout)).on("error", (error) => {
    console.error(error.code);
    process.exit(7);
});
