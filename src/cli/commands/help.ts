import type { Command } from 'commander';
import { CliError } from '../cli-error.ts';
import { define } from '../define.ts';
import { exitCodes } from '../exit-codes.ts';

const topics: Record<string, () => string> = {
  'exit-codes': () => {
    const rows = Object.values(exitCodes).map(({ code, meaning }) => `${String(code).padStart(5)}  ${meaning}`);
    return `Exit codes\n\n${rows.join('\n')}\n\nErrors are one sentence on stderr; with --json they are one JSON object with a stable \`reason\`.\n`;
  },
  environment: () =>
    `Environment

  LEASEHOLD_SERVER            as --server
  LEASEHOLD_TOKEN_FILE        as --token-file
  LEASEHOLD_TOKEN             the attestation itself, when no file is named
  LEASEHOLD_CA_FILE           as --ca-file
  LEASEHOLD_TIMEOUT           as --timeout
  LEASEHOLD_ALLOW_PLAINTEXT   as --allow-plaintext, when it is 1 or true
  LEASEHOLD_CONFIG            as --config of serve, migrate and config check
  LEASEHOLD_DATABASE_URL      database of migrate, when its login is not the broker's
  LEASEHOLD_DEV_DATABASE_URL  superuser of the PostgreSQL that dev uses instead of its own
  NO_COLOR                    no colours, when it is not empty
`,
};

export function help(program: Command): void {
  const command = define(program, {
    name: 'help',
    summary: 'Show help for a command or a topic',
    description: `Shows help for a command, or for a topic: ${Object.keys(topics).join(', ')}.`,
    examples: [
      ['leasehold help task open', 'one command'],
      ['leasehold help exit-codes', 'what the exit codes mean'],
      ['leasehold help environment', 'the variables that are read'],
    ],
  });
  command.argument('[topic...]', 'command or topic').action((words: string[]) => {
    const topic = words.length === 1 ? topics[words[0]!] : undefined;
    if (topic !== undefined) {
      process.stdout.write(topic());
      return;
    }
    let node = program;
    for (const word of words) {
      const next = node.commands.find((child) => child.name() === word);
      if (next === undefined) {
        throw new CliError('usage', `there is no help on ${words.join(' ')}; see leasehold help`, { reason: 'USAGE' });
      }
      node = next;
    }
    node.outputHelp();
  });
}
