/**
 * The broker as it is served, plus the echo service, in a process of its own: `node bench/broker.ts <leasehold.yaml>`.
 * Says its ports over IPC, answers each message with what the process has used, and stops when the channel closes.
 */
import { loadConfig } from '../src/config/load-config.ts';
import { startBroker } from '../src/root.ts';
import { echoService } from './echo-service.ts';
import type { Usage } from './protocol.ts';

const broker = await startBroker({
  config: loadConfig({ path: process.argv[2]!, env: process.env }),
  services: [echoService()],
});
process.on('message', () => {
  const { user, system } = process.cpuUsage();
  process.send!({ cpu: (user + system) / 1e6, rssBytes: process.memoryUsage.rss() } satisfies Usage);
});
// Not at once: process.exit is what writes a profile that --cpu-prof asked for.
process.once('disconnect', () => void broker.stop(2_000).finally(() => process.exit(0)));
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => undefined);
process.send!({ grpcPort: broker.grpcPort, httpPort: broker.httpPort });
