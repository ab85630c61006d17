import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

// The page asks this server, which adds the key: a browser never has it.
const proxy = {
  "/ag-ui": {
    target: process.env.CLAUDE_AGENT_API_URL,
    headers: { Authorization: `Bearer ${process.env.CLAUDE_AGENT_API_KEY}` },
    changeOrigin: true,
  },
};

export default defineConfig({ plugins: [react()], server: { proxy }, preview: { proxy } });
