import type { Command } from 'commander';
import { define, withJson } from '../define.ts';
import { version as release } from '../../version.ts';

export function version(parent: Command): void {
  const command = define(parent, {
    name: 'version',
    summary: 'Print the release',
    examples: [
      ['leasehold version', 'for a person'],
      ['leasehold version --json', 'for a script'],
    ],
  });
  withJson(command).action((options: { json?: boolean }) => {
    process.stdout.write(
      options.json === true
        ? `${JSON.stringify({ version: release, node: process.versions.node })}\n`
        : `leasehold ${release} (Node ${process.versions.node})\n`,
    );
  });
}
