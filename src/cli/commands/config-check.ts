import type { Command } from 'commander';
import { define, withJson } from '../define.ts';
import { startup, withConfig, type ConfigOptions } from '../startup.ts';

interface Options extends ConfigOptions {
  json?: boolean;
}

export function configCheck(parent: Command): void {
  const command = define(parent, {
    name: 'check',
    summary: 'Check the configuration, without starting anything',
    description:
      'Reads the configuration and lists every mistake with file, line and column. Exits with 9 when there is one.',
    examples: [
      ['leasehold config check', 'leasehold.yaml of this folder'],
      ['leasehold config check --config /etc/leasehold/leasehold.yaml --json', 'for a pipeline'],
    ],
  });
  withJson(withConfig(command)).action(async (options: Options) => {
    const config = await startup(async () => {
      const { loadConfig } = await import('../../config/load-config.ts');
      return loadConfig({ path: options.config, env: process.env });
    });
    process.stdout.write(
      options.json === true ? `${JSON.stringify({ file: config.file, valid: true })}\n` : `${config.file} is valid\n`,
    );
  });
}
