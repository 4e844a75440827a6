/**
 * The broker as a process of its own, for fault tests: `node broker-main.ts <leasehold.yaml>`. LEASEHOLD_TEST_KILL_AT names a
 * point (src/domain/telemetry.ts) at which it kills itself, as SIGKILL from outside would.
 */
import { loadConfig } from '../../src/config/load-config.ts';
import { startBroker } from '../../src/root.ts';

const killAt = process.env['LEASEHOLD_TEST_KILL_AT'];
const config = loadConfig({ path: process.argv[2]!, env: process.env });
const broker = await startBroker({
  config,
  reached: (point) => {
    if (point === killAt) process.kill(process.pid, 'SIGKILL');
  },
});
process.stdout.write(`${JSON.stringify({ grpcPort: broker.grpcPort, httpPort: broker.httpPort })}\n`);
for (const signal of ['SIGTERM', 'SIGINT'] as const) {
  process.once(signal, () => void broker.stop().then(() => process.exit(0)));
}
