import type { Command } from 'commander';
import { CliError } from '../cli-error.ts';
import { define } from '../define.ts';

export function demo(parent: Command): void {
  const command = define(parent, {
    name: 'demo',
    summary: 'Play the whole life of a task on this machine',
    description:
      'Starts a real PostgreSQL, a trust domain and a broker in a temporary folder, plays the life of one task and says ' +
      'what each step shows. Everything is removed at the end. Exits 1 when a step fails.',
    examples: [
      ['leasehold demo', 'for a person'],
      ['leasehold demo --json', 'one JSON object per step: {"step", "ok", …}'],
    ],
  });
  command.option('--json', 'one JSON object per step').action(async (options: { json?: boolean }) => {
    const { runDemo } = await import('../../demo/demo.ts');
    const ok = await runDemo({
      json: options.json === true,
      write: (line) => void process.stdout.write(`${line}\n`),
      progress: (line) => void process.stderr.write(`leasehold: ${line}\n`),
    });
    if (!ok)
      throw new CliError('unexpected', 'a step of the demo failed; it is named above', { reason: 'DEMO_FAILED' });
  });
}
