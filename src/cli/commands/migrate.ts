import { readFileSync } from 'node:fs';
import { Option, type Command } from 'commander';
import type { ConnectionOptions } from 'node:tls';
import { CliError } from '../cli-error.ts';
import { define, withJson } from '../define.ts';
import { startup, withConfig, type ConfigOptions } from '../startup.ts';

interface Options extends ConfigOptions {
  databaseUrlFile?: string;
  databaseCaFile?: string;
  json?: boolean;
}

export function migrate(parent: Command): void {
  const command = define(parent, {
    name: 'migrate',
    summary: 'Bring the database to this release',
    description:
      'Applies the migrations that are missing, each in a transaction of its own; what is there already is left alone. It ' +
      'needs a login that may create schemas and roles; the broker itself runs with less. Give that login by ' +
      '--database-url-file or LEASEHOLD_DATABASE_URL, else `database` of the configuration is used.',
    examples: [
      ['leasehold migrate --database-url-file /run/secrets/owner-url', 'before a new release starts'],
      ['leasehold migrate --config leasehold.yaml', 'with the login of the configuration'],
    ],
  });
  withConfig(command)
    .addOption(
      new Option('--database-url-file <file>', 'file with a postgres:// URL').env('LEASEHOLD_DATABASE_URL_FILE'),
    )
    .option('--database-ca-file <file>', 'PEM file with the authority of the database’s certificate');
  withJson(command).action(async (options: Options) => {
    const result = await startup(async () => {
      const { url, caFile } = await database(options);
      const storage = await import('../../storage/migrate.ts');
      return await storage.migrate(url, tlsOptions(caFile));
    });
    if (options.json === true) {
      process.stdout.write(`${JSON.stringify(result)}\n`);
      return;
    }
    for (const name of result.applied) process.stdout.write(`applied ${name}\n`);
    const word = result.applied.length === 0 ? 'is already' : 'is now';
    process.stdout.write(`the database ${word} at version ${result.version}\n`);
  });
}

async function database(options: Options): Promise<{ url: string; caFile: string | undefined }> {
  const { fileSecret } = await import('../../config/secret-source.ts');
  if (options.databaseUrlFile !== undefined) {
    const url = fileSecret('--database-url-file', options.databaseUrlFile).read();
    return { url, caFile: options.databaseCaFile };
  }
  const fromEnvironment = process.env.LEASEHOLD_DATABASE_URL;
  if (fromEnvironment !== undefined && fromEnvironment !== '') {
    return { url: fromEnvironment, caFile: options.databaseCaFile };
  }
  const { loadConfig } = await import('../../config/load-config.ts');
  const config = loadConfig({ path: options.config, env: process.env });
  if (config.database === undefined) {
    throw new CliError('usage', `${config.file} names no database; add database.urlFile, or give --database-url-file`, {
      reason: 'USAGE',
    });
  }
  return { url: config.database.url.read(), caFile: options.databaseCaFile ?? config.database.caFile };
}

function tlsOptions(caFile: string | undefined): ConnectionOptions | undefined {
  return caFile === undefined ? undefined : { ca: readFileSync(caFile), rejectUnauthorized: true };
}
