import type { Command } from 'commander';
import { define } from '../define.ts';
import { runUntilSignal } from '../signals.ts';
import { configInvalid, startup, withConfig, type ConfigOptions } from '../startup.ts';

export function serve(parent: Command): void {
  const command = define(parent, {
    name: 'serve',
    summary: 'Run the broker',
    description:
      'Runs the broker in the foreground until SIGTERM or SIGINT; it then finishes what is in flight within the grace ' +
      'period of its configuration. A second signal ends it at once.',
    examples: [
      ['leasehold serve --config /etc/leasehold/leasehold.yaml', 'in production, under a supervisor'],
      ['leasehold config check && leasehold serve', 'with leasehold.yaml of this folder'],
    ],
  });
  withConfig(command).action(async (options: ConfigOptions) => {
    const { broker, grace } = await startup(async () => {
      const { checkConfig } = await import('../../config/check-config.ts');
      const checked = await checkConfig({ path: options.config, env: process.env });
      if (!checked.ok) throw configInvalid(checked.issues);
      const { startBroker } = await import('../../root.ts');
      const started = await startBroker({ config: checked.config });
      return { broker: started, grace: checked.config.server.shutdownGrace };
    });
    process.stderr.write(`leasehold: serving gRPC on port ${broker.grpcPort}, HTTP on port ${broker.httpPort}\n`);
    await runUntilSignal(() => broker.stop(grace));
  });
}
